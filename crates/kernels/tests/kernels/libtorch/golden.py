"""Writes golden.json: what libtorch 2.13.0 (x86 engine, one thread) computes on inputs that main.rs makes too.

    python tests/kernel_libtorch/golden.py > tests/kernel_libtorch/golden.json
"""

import json
import warnings

import numpy as np
import torch
import torch.nn.functional as F

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
torch.backends.quantized.engine = "x86"
cases = {}


def bits(seed, *shape):
    """The upper 24 bits of a linear congruential sequence, one step an element."""
    n = int(np.prod(shape))
    with np.errstate(over="ignore"):
        i = np.arange(1, n + 1, dtype=np.uint64)
        z = (i + np.uint64(seed) * np.uint64(0x9E3779B9)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z >> np.uint64(40)).reshape(shape)


def floats(seed, low, high, *shape):
    unit = bits(seed, *shape).astype(np.float32) / np.float32(1 << 24)
    return torch.from_numpy(unit * np.float32(high - low) + np.float32(low))


def bytes_(seed, *shape):
    return torch.from_numpy((bits(seed, *shape) >> np.uint64(16)).astype(np.uint8))


def quint8(seed, scale, zero_point, *shape):
    return torch._make_per_tensor_quantized_tensor(bytes_(seed, *shape), scale, zero_point)


def nhwc(seed, scale, zero_point, n, h, w, c):
    """A channels-last tensor whose memory is the sequence."""
    q = quint8(seed, scale, zero_point, n, h, w, c).permute(0, 3, 1, 2)
    assert q.is_contiguous(memory_format=torch.channels_last)
    return q


def fnv(a):
    h = 0xCBF29CE484222325
    for b in a.tobytes():
        h = ((h ^ b) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


def record(name, t):
    """All bytes of a small result; the FNV-1a hash of a large one."""
    t = t.int_repr() if t.is_quantized else t
    if t.dim() == 4:
        t = t.permute(0, 2, 3, 1)
    a = t.contiguous().numpy()
    cases[name] = a.flatten().tolist() if a.size <= 256 and a.dtype.kind in "iu" else fnv(a)


x = floats(1, -8, 8, 10007)
record("quantize u8", torch.quantize_per_tensor(x, 0.05, 77, torch.quint8))
record("quantize i8", torch.quantize_per_tensor(x, 0.0421, -9, torch.qint8))
ties = (torch.arange(-128, 128) * 0.25 + 0.125)[:255]
record("quantize ties", torch.quantize_per_tensor(ties, 0.25, 101, torch.quint8))
record("quantize ties per channel", torch.quantize_per_channel(
    ties.reshape(1, 255), torch.tensor([0.25]), torch.tensor([101]), 0, torch.quint8))
record("dequantize u8", quint8(2, 0.0371, 77, 10007).dequantize())
scales = floats(3, 0.01, 0.1, 33)
zero_points = bytes_(4, 33).to(torch.int64)
for axis, shape in enumerate([(33, 10, 7), (10, 33, 7), (10, 7, 33)]):
    q = torch.quantize_per_channel(floats(5, -8, 8, *shape), scales, zero_points, axis, torch.quint8)
    record(f"quantize per channel {axis}", q)
    record(f"dequantize per channel {axis}", q.dequantize())
a, b = quint8(6, 0.05, 120, 4096), quint8(7, 0.04, 131, 4096)
record("add", torch.ops.quantized.add(a, b, 0.0625, 90))
record("add_relu", torch.ops.quantized.add_relu(a, b, 0.07, 90))
record("mul", torch.ops.quantized.mul(a, b, 0.2, 90))
record("mul_relu", torch.ops.quantized.mul_relu(a, b, 0.21, 90))
every = torch._make_per_tensor_quantized_tensor(torch.arange(256).to(torch.uint8), 0.05, 120)
record("relu", F.relu(every))
record("relu6", F.hardtanh(every, 0.0, 6.0))
record("sigmoid", torch.ops.quantized.sigmoid(every, 1 / 256, 0))
record("tanh", torch.tanh(every))
record("leaky_relu", torch.ops.quantized.leaky_relu(every, 0.1, False, 0.04, 100))
record("hardswish", torch.ops.quantized.hardswish(every, 0.04, 30))
record("hardsigmoid", F.hardsigmoid(every))
record("elu", torch.ops.quantized.elu(every, 0.04, 30, 1.5))
record("gelu", F.gelu(every))
record("requantize", torch.ops.quantized.cat([every], 0, 0.07, 99))

print(json.dumps(cases).replace(', "', ',\n "'))
