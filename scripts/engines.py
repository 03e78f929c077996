"""What libtorch's engines for quantized operators compute, against exact results, and how long depthwise convolutions take.

    python scripts/engines.py                    # the shapes of convolutions that are not exact to one step, for each engine
    python scripts/engines.py --times            # milliseconds of depthwise layers in their forms, one thread
    ATEN_CPU_CAPABILITY=avx2 FBGEMM_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 python scripts/engines.py

`tests/engine_table.rs` has the same as a test; this is for other versions of libtorch and other machines. It needs torch alone.
"""

import argparse
import itertools
import time
import warnings

import torch
from torch import Tensor

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
torch.manual_seed(0)
OPS = torch.ops.quantized
FLOAT = {(1, False): torch.conv1d, (2, False): torch.conv2d, (3, False): torch.conv3d,
         (1, True): torch.conv_transpose1d, (2, True): torch.conv_transpose2d, (3, True): torch.conv_transpose3d}
FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}
ENGINES = [engine for engine in torch.backends.quantized.supported_engines if engine != "none"]


def values(kind: str, shape: tuple[int, ...], low: int, high: int) -> Tensor:
    """Integers at the ends of their range, or anywhere in it."""
    if kind == "highest":
        return torch.full(shape, high)
    if kind == "lowest":
        return torch.full(shape, low)
    if kind == "ends":
        return torch.where(torch.rand(shape) < 0.5, low, high)
    return torch.randint(low, high + 1, shape)


def steps_apart(dim: int, transposed: bool, channels: tuple[int, int, int], window: tuple[int, int, int, int],
                kinds: tuple[str, str], zero_point: int, size: int) -> int:
    """How many steps the engine's result is from the exact one at most."""
    inputs, outputs, groups = channels
    kernel, stride, padding, dilation = window
    first = (inputs, outputs // groups) if transposed else (outputs, inputs // groups)
    x = values(kinds[0], (2, inputs) + (size,) * dim, 0, 255)
    w = values(kinds[1], first + (kernel,) * dim, -127, 127)
    exact, integers = FLOAT[dim, transposed], (x - zero_point).double()
    if transposed:
        sums = exact(integers, w.double(), None, stride, padding, 0, groups, dilation)
    else:
        sums = exact(integers, w.double(), None, stride, padding, dilation, groups)
    real = sums * 0.02 * 0.01
    scale = max(float(real.abs().max()) / 127, 1e-6)
    wanted = (torch.round(real / scale) + 128).clamp(0, 255)
    weight = torch._make_per_tensor_quantized_tensor(w.to(torch.int8), 0.01, 0)
    extra = [[0] * dim] if transposed else []
    name = f"conv_transpose{dim}d" if transposed else f"conv{dim}d"
    packed = getattr(OPS, name + "_prepack")(weight, torch.zeros(outputs), [stride] * dim, [padding] * dim, *extra,
                                             [dilation] * dim, groups)
    quantized = torch._make_per_tensor_quantized_tensor(x.to(torch.uint8), 0.02, zero_point)
    found = getattr(OPS, name)(quantized.contiguous(memory_format=FORMATS[dim]), packed, scale, 128)
    return int((found.int_repr().double() - wanted).abs().max())


def check(engine: str) -> None:
    """Prints what is more than a step from exact."""
    torch.backends.quantized.engine = engine
    print(f"{engine}:")
    channels = [(3, 5, 1), (16, 16, 1), (64, 32, 1), (17, 33, 1), (16, 32, 2), (12, 24, 3), (16, 16, 4)]
    channels += [(c, c, c) for c in (7, 8, 16, 58, 96, 104, 232)] + [(8, 16, 8)]
    windows = [(1, 1, 0, 1), (3, 1, 1, 1), (3, 2, 1, 1), (3, 1, 0, 1), (3, 1, 0, 2), (5, 1, 2, 1), (2, 2, 0, 1)]
    for dim, transposed, (c, window) in itertools.product((1, 2, 3), (False, True), itertools.product(channels, windows)):
        if dim == 3 and (window[0] > 3 or c[0] > 104):
            continue
        runs = itertools.product([("highest", "highest"), ("highest", "lowest"), ("ends", "ends"), ("any", "any")], (0, 128, 255))
        worst = max(steps_apart(dim, transposed, c, window, kinds, zero, (17, 9, 6)[dim - 1]) for kinds, zero in runs)
        if worst > 1:
            print(f"  {'transposed ' if transposed else ''}{dim}d, inputs, outputs, groups {c}, "
                  f"kernel, stride, padding, dilation {window}: {worst} steps")


def pack(weight: Tensor, stride: int, padding: int, groups: int) -> object:
    """A weight of int8 numbers with one scale, for the engine that is set."""
    quantized = torch._make_per_tensor_quantized_tensor(weight.to(torch.int8), 0.01, 0)
    return OPS.conv2d_prepack(quantized, torch.zeros(len(weight)), [stride] * 2, [padding] * 2, [1, 1], groups)


def in_blocks(weight: Tensor, size: int) -> Tensor:
    """A depthwise weight for groups of `size` channels."""
    wide = torch.zeros((len(weight), size) + weight.shape[2:])
    places = torch.arange(len(weight))
    wide[places, places % size] = weight[:, 0]
    return wide


def times(engine: str) -> None:
    """Prints milliseconds, medians of runs in turns."""
    torch.backends.quantized.engine = engine
    layers = [(58, 28, 3, 1), (116, 14, 3, 1), (232, 7, 3, 1), (96, 112, 3, 2), (144, 56, 3, 1), (192, 28, 3, 1),
              (384, 14, 3, 1), (576, 14, 3, 1), (960, 7, 3, 1), (240, 28, 5, 1), (672, 14, 5, 1), (1152, 7, 5, 1)]
    for channels, size, kernel, stride in layers:
        weight, x = torch.randint(-127, 128, (channels, 1, kernel, kernel)).float(), torch.randn(1, channels, size, size)
        quantized = torch.quantize_per_tensor(x, 0.03, 128, torch.quint8).contiguous(memory_format=torch.channels_last)
        forms = {"float": lambda: torch.conv2d(x, weight, None, stride, kernel // 2, 1, channels)}
        for block in (1, 2, 4, 8, 16):
            if channels % block == 0:
                packed = pack(in_blocks(weight, block), stride, kernel // 2, channels // block)
                forms[f"groups of {block}"] = lambda packed=packed: OPS.conv2d(quantized, packed, 0.5, 128)
        spent = {name: [] for name in forms}
        for _ in range(12):
            for name, run in forms.items():
                start = time.perf_counter()
                run()
                spent[name].append(time.perf_counter() - start)
        medians = ", ".join(f"{name} {sorted(all_)[len(all_) // 2] * 1e3:.2f}" for name, all_ in spent.items())
        print(f"{engine}, {channels} channels, {size}x{size}, kernel {kernel}, stride {stride}: {medians}")


def main() -> None:
    """Reads the arguments and runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", action="store_true", help="measure depthwise layers instead")
    parser.add_argument("--engine", choices=ENGINES, action="append", help="these engines only")
    arguments = parser.parse_args()
    for engine in arguments.engine or ENGINES:
        (times if arguments.times else check)(engine)


if __name__ == "__main__":
    main()
