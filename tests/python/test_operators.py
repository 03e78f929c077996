"""The operators of namespace jitquant from Python: torch.ops.load_library, real tensors, meta tensors, saved modules."""

import io
import os

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

LIBRARY = os.environ["JITQUANT_LIBRARY"]
torch.ops.load_library(LIBRARY)
ops = torch.ops.jitquant

SCALE, ZERO_POINT = 0.02, 117


def quantized(x):
    return torch.quantize_per_tensor(x, SCALE, ZERO_POINT, torch.quint8)


def steps(ours, theirs):
    """The largest distance in quantization steps."""
    assert ours.dtype == torch.uint8 and ours.shape == theirs.shape
    return (ours.int() - theirs.int_repr().int()).abs().max().item()


def linear_weight(outputs=9, inputs=17):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randint(-127, 128, (outputs, inputs), generator=generator, dtype=torch.int8)
    scales = torch.rand(outputs, generator=generator) * 0.02 + 0.001
    bias = torch.randn(outputs, generator=generator)
    return weight, scales, torch.zeros(outputs, dtype=torch.int32), bias


def conv_weight():
    generator = torch.Generator().manual_seed(2)
    weight = torch.randint(-127, 128, (6, 3, 3, 3), generator=generator, dtype=torch.int8)
    scales = torch.rand(6, generator=generator) * 0.02 + 0.001
    bias = torch.randn(6, generator=generator)
    return weight, scales, torch.zeros(6, dtype=torch.int32), bias


def stock_weight(weight, scales):
    return torch._make_per_channel_quantized_tensor(
        weight, scales.double(), torch.zeros(len(scales), dtype=torch.long), 0
    )


def test_loading_twice_registers_once():
    torch.ops.load_library(LIBRARY)
    schemas = [s for s in torch._C._jit_get_all_schemas() if s.name == "jitquant::linear"]
    assert len(schemas) == 1


@pytest.mark.parametrize("name", ["linear", "conv", "quantize", "dequantize", "add", "cat", "softmax"])
@pytest.mark.parametrize("key", ["CPU", "Meta"])
def test_kernels_are_registered(name, key):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"jitquant::{name}", key)


def test_quantize_and_back():
    x = torch.randn(3, 5, 7)
    q = ops.quantize(x, SCALE, ZERO_POINT)
    assert steps(q, quantized(x)) == 0
    torch.testing.assert_close(ops.dequantize(q, SCALE, ZERO_POINT), quantized(x).dequantize())


@pytest.mark.parametrize("sizes", [(1, 17), (4, 17), (2, 3, 17), (0, 17)])
def test_linear_is_libtorchs_to_a_step(sizes):
    weight, scales, zero_points, bias = linear_weight()
    x = torch.randn(sizes)
    packed = torch.ops.quantized.linear_prepack(stock_weight(weight, scales), bias)
    ours = ops.linear_prepack(weight, scales, zero_points, bias)
    q = ops.quantize(x, SCALE, ZERO_POINT)
    got = ops.linear(q, ours, SCALE, ZERO_POINT, 0.05, 100)
    if x.numel() == 0:
        assert got.shape == (0, 9) and got.dtype == torch.uint8
        return
    # Away from saturation, or the comparison would hold for anything.
    assert (got > 0).logical_and(got < 255).float().mean() > 0.5
    assert steps(got, torch.ops.quantized.linear(quantized(x), packed, 0.05, 100)) <= 1


def test_linear_takes_stock_packed_parameters():
    weight, scales, zero_points, bias = linear_weight()
    packed = torch.ops.quantized.linear_prepack(stock_weight(weight, scales), bias)
    x = ops.quantize(torch.randn(4, 17), SCALE, ZERO_POINT)
    from_packed = ops.linear(x, ops.linear_from_packed(packed), SCALE, ZERO_POINT, 0.05, 100)
    prepacked = ops.linear(x, ops.linear_prepack(weight, scales, zero_points, bias), SCALE, ZERO_POINT, 0.05, 100)
    assert torch.equal(from_packed, prepacked)


def test_conv_is_libtorchs_to_a_step():
    weight, scales, zero_points, bias = conv_weight()
    geometry = [2, 1], [1, 0], [1, 1]
    packed = torch.ops.quantized.conv2d_prepack(stock_weight(weight, scales), bias, *geometry, 1)
    ours = ops.conv_prepack(weight, scales, zero_points, bias, *geometry, [0, 0])
    x = torch.randn(2, 3, 9, 11)
    q = ops.quantize(x, SCALE, ZERO_POINT)
    got = ops.conv(q, ours, SCALE, ZERO_POINT, 0.1, 100)
    assert (got > 0).logical_and(got < 255).float().mean() > 0.5
    assert steps(got, torch.ops.quantized.conv2d(quantized(x), packed, 0.1, 100)) <= 1
    meta = ops.conv(q.to("meta"), ours, SCALE, ZERO_POINT, 0.1, 100)
    assert (meta.shape, meta.dtype, meta.stride()) == (got.shape, got.dtype, got.stride())


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("batch", [2, 0])
def test_convolutions_on_meta_tensors_have_the_real_strides(dimensions, batch):
    weight = torch.ones((6, 3) + (3,) * dimensions, dtype=torch.int8)
    one, none = [1] * dimensions, [0] * dimensions
    ours = ops.conv_prepack(weight, torch.ones(1), torch.zeros(1, dtype=torch.int32), None, one, one, one, none)
    x = torch.zeros((batch, 3) + (7,) * dimensions, dtype=torch.uint8)
    real, meta = (ops.conv(each, ours, SCALE, ZERO_POINT, 0.1, 100) for each in (x, x.to("meta")))
    assert (meta.shape, meta.dtype, meta.stride()) == (real.shape, real.dtype, real.stride())


def test_unpack_gives_what_was_packed():
    given = linear_weight()
    for got, expected in zip(ops.linear_unpack(ops.linear_prepack(*given)), given):
        assert torch.equal(got, expected)


def test_linear_on_meta_tensors():
    ours = ops.linear_prepack(*linear_weight())
    meta = ops.linear(torch.empty(2, 3, 17, dtype=torch.uint8, device="meta"), ours, SCALE, ZERO_POINT, 0.05, 100)
    assert (meta.shape, meta.dtype, meta.device.type) == ((2, 3, 9), torch.uint8, "meta")


def test_fake_tensors():
    with FakeTensorMode():
        x = torch.empty(2, 3, 4)
        q = ops.quantize(x, SCALE, ZERO_POINT)
        y = ops.add(q, SCALE, ZERO_POINT, q, SCALE, ZERO_POINT, 0.04, 100)
        assert (y.shape, y.dtype) == ((2, 3, 4), torch.uint8)
        assert ops.dequantize(y, 0.04, 100).dtype == torch.float32


def test_refusals_say_what_is_accepted():
    ours = ops.linear_prepack(*linear_weight())
    with pytest.raises(RuntimeError, match="on the CPU is accepted"):
        ops.linear(torch.randn(4, 17), ours, SCALE, ZERO_POINT, 0.05, 100)
    with pytest.raises(RuntimeError, match="17 inputs"):
        ops.linear(torch.zeros(4, 16, dtype=torch.uint8), ours, SCALE, ZERO_POINT, 0.05, 100)
    with pytest.raises(RuntimeError, match="int8 is accepted"):
        ops.linear_prepack(torch.randn(2, 2), torch.ones(2), torch.zeros(2, dtype=torch.int32))


def test_a_module_with_native_weights_survives_saving():
    class Layer(torch.nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.weight = weight

        def forward(self, x):
            q = torch.ops.jitquant.quantize(x, 0.02, 117)
            return torch.ops.jitquant.linear_float(q, self.weight, 0.02, 117)

    module = torch.jit.script(Layer(ops.linear_prepack(*linear_weight())))
    file = io.BytesIO()
    torch.jit.save(module, file)
    file.seek(0)
    x = torch.randn(5, 17)
    assert torch.equal(torch.jit.load(file)(x), module(x))
