"""torch's own checks of custom operators: fake tensors, gradients, schemas. In processes of their own where one could end."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

LIBRARY = os.environ["JITQUANT_LIBRARY"]
torch.ops.load_library(LIBRARY)
ops = torch.ops.jitquant

BYTES = torch.arange(2 * 3 * 5 * 7, dtype=torch.int64).remainder(251).to(torch.uint8).reshape(2, 3, 5, 7)
FLOATS = BYTES.float() / 17 - 5
ONE, ZERO = torch.tensor([0.1]), torch.tensor([3], dtype=torch.int32)
TABLE = ops.embedding_prepack(torch.linspace(-1, 1, 40).reshape(5, 8), 8)
INDICES = torch.tensor([0, 4, 2, 2])

CASES = {
    "quantize": (FLOATS, 0.1, 3),
    "dequantize": (BYTES, 0.1, 3),
    "requantize": (BYTES, 0.1, 3, 0.2, 7),
    "quantize_per_channel": (FLOATS, ONE.expand(3), ZERO.expand(3), 1),
    "dequantize_per_channel": (BYTES.to(torch.int8), ONE.expand(3), ZERO.expand(3), 1),
    "clamp": (BYTES, 3, 200),
    "lookup": (BYTES, torch.arange(256).to(torch.uint8)),
    "add": (BYTES, 0.1, 3, BYTES[:, :1], 0.2, 5, 0.3, 0),
    "mul": (BYTES, 0.1, 3, BYTES, 0.2, 5, 0.3, 0),
    "matmul": (BYTES, 0.1, 3, BYTES.transpose(2, 3), 0.2, 5, 9.0, 128),
    "cat": ([BYTES, BYTES], [0.1, 0.2], [3, 4], 1, 0.1, 3),
    "max_pool": (BYTES, [2, 2], [2, 2], [0, 0], [1, 1]),
    "avg_pool": (BYTES, 3, [2, 2], [2, 2], [0, 0]),
    "adaptive_avg_pool": (BYTES, 3, [2, 2]),
    "mean": (BYTES, 3, [2, 3]),
    "upsample_nearest": (BYTES, [7, 9]),
    "upsample_bilinear": (BYTES, None, False, [1.2, 2.0]),
    "softmax": (BYTES, 0.1, 3, 1, 1 / 256, 0),
    "layer_norm": (BYTES, 0.1, 3, [7], None, None, 1e-5, 0.05, 128),
    "group_norm": (BYTES, 0.1, 3, 3, None, None, 1e-5, 0.05, 128),
    "instance_norm": (BYTES, 0.1, 3, None, None, 1e-5, 0.05, 128),
    "batch_norm": (BYTES, 0.1, 3, None, None, torch.zeros(3), torch.ones(3), 1e-5, 0.05, 128),
    "embedding_prepack": (torch.linspace(-1, 1, 40).reshape(5, 8), 8),
    "embedding": (TABLE, INDICES),
    "embedding_bag": (TABLE, INDICES, torch.tensor([0, 2])),
    "fake_quantize": (FLOATS, ONE, ZERO, -1, 0, 255),
    "fake_quantize_backward": (FLOATS, FLOATS, ONE, ZERO, -1, 0, 255),
    "fake_quantize_learned": (FLOATS, ONE, ZERO.float(), -1, 0, 255),
    "fake_quantize_learned_backward": (FLOATS, FLOATS, ONE, ZERO.float(), -1, 0, 255),
    "histogram_range": (torch.ones(64), torch.tensor([-1.0]), torch.tensor([1.0])),
    "qparams": (torch.tensor([-1.0]), torch.tensor([1.0]), 13, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_opcheck(name):
    torch.library.opcheck(getattr(ops, name).default, CASES[name])


@pytest.mark.parametrize("name", ["fake_quantize", "fake_quantize_learned"])
def test_opcheck_with_gradients(name):
    x, scale, zero, *rest = CASES[name]
    arguments = (x.clone().requires_grad_(), scale.clone().requires_grad_("learned" in name), zero, *rest)
    torch.library.opcheck(getattr(ops, name).default, arguments)


def test_compiled_without_breaks():
    def forward(x):
        q = ops.quantize(x, 0.1, 3)
        q = ops.max_pool(ops.add(q, 0.1, 3, q, 0.1, 3, 0.2, 3), [2, 2], [2, 2], [0, 0], [1, 1])
        return ops.dequantize(q, 0.2, 3)

    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(FLOATS), forward(FLOATS))


@pytest.mark.parametrize(
    "call",
    [
        "ops.fake_quantize(x, s, z, -1, 0, 255)",
        "ops.fake_quantize(x.requires_grad_(), s, z, -1, 0, 255)",
        "ops.fake_quantize_learned(x.requires_grad_(), s.requires_grad_(), z.float(), -1, 0, 255)",
        "ops.linear_prepack(w, s, z)",
        "ops.conv_prepack(w[:, :, None], s, z, None, [1], [0], [1], [0])",
        "ops.linear_weight_only_prepack(w, torch.ones(4))",
        "ops.linear_weight_only_prepack(w.to(torch.uint8), torch.ones(4, 1), torch.ones(4, 1))",
        "ops.embedding_prepack(torch.ones(4, 6), 8)",
    ],
)
def test_fake_tensors_do_not_end_the_process(call):
    source = f"""
        import torch
        from torch._subclasses.fake_tensor import FakeTensorMode
        torch.ops.load_library({LIBRARY!r})
        ops = torch.ops.jitquant
        with FakeTensorMode():
            x, s, z = torch.rand(4, 6), torch.rand(1), torch.zeros(1, dtype=torch.int32)
            w = torch.ones(4, 6, dtype=torch.int8)
            try:
                print("result", type({call}))
            except Exception as error:
                print("refused", error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("result", "refused"))
    assert "prepack" in call and "embedding" not in call or done.stdout.startswith("result"), done.stdout
