#!/usr/bin/env python3
"""Writes the exported programs of tests/import: small models, their inputs and what Python makes of them.

    exported.py [NAME ...] [--out tests/import/programs]

Each program NAME gives NAME.pt2 and NAME.npz. The arrays of the latter are called RUN/ARGUMENT and RUN/output_K; runs follow one
another on one module, so that state is seen. Arguments that are tuples, lists and dictionaries have an array for each part:
RUN/ARGUMENT.KEY. Files hold no path of the machine that made them.
"""

import argparse
import io
import math
import re
import sys
import zipfile
from collections import namedtuple
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim, export

PROGRAMS: dict = {}


@dataclass
class Spec:
    """A model and how it is exported and run."""

    model: nn.Module
    args: tuple = ()
    kwargs: dict = field(default_factory=dict)
    dynamic: dict | None = None
    more: list = field(default_factory=list)
    """Further runs: pairs of positional and named arguments."""
    decompose: bool = False
    strict: bool = False
    flat: bool = False
    """Whether it is written as torch 2.5 to 2.7 wrote it."""
    train: bool = False
    original: nn.Module | None = None
    """The float model, where `model` is what PT2E made of it."""


def program(make):
    PROGRAMS[make.__name__] = make
    return make


class Function(nn.Module):
    """A model that is a function."""

    def __init__(self, function, **state):
        super().__init__()
        self.function = function
        for name, value in state.items():
            if isinstance(value, nn.Module):
                self.add_module(name, value)
            elif isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            else:
                self.register_buffer(name, value)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def image(batch=2, channels=3, size=12):
    return torch.randn(batch, channels, size, size)


BATCH = Dim("batch", min=1, max=64)


class Block(nn.Module):
    def __init__(self, channels, groups=1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 1)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(x + self.conv2(self.relu(self.bn1(self.conv1(x)))))


class Classifier(nn.Module):
    def __init__(self, groups=1, blocks=2):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU6())
        self.layer1 = nn.Sequential(*[Block(8, groups) for _ in range(blocks)])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(torch.flatten(self.pool(self.layer1(self.stem(x))), 1))


def warmed_up(model):
    """Batch norms with statistics of their own."""
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(image(8) * 2 + 0.5)
    return model.eval()


@program
def cnn():
    return Spec(warmed_up(Classifier()), (image(),))


@program
def cnn_dynamic():
    return Spec(warmed_up(Classifier()), (image(),), dynamic={"x": {0: BATCH}}, more=[((image(5),), {}), ((image(1),), {})])


@program
def cnn_depthwise():
    return Spec(warmed_up(Classifier(groups=8)), (image(),), dynamic={"x": {0: BATCH}}, more=[((image(3),), {})])


@program
def cnn_decomposed():
    return Spec(warmed_up(Classifier()), (image(),), dynamic={"x": {0: BATCH}}, more=[((image(3),), {})], decompose=True)


@program
def cnn_strict():
    return Spec(warmed_up(Classifier()), (image(),), strict=True)


@program
def cnn_flat_archive():
    return Spec(warmed_up(Classifier()), (image(),), flat=True)


@program
def dynamic_size():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3))
    return Spec(model, (image(1, 3, 16),), dynamic={"input": {2: Dim.AUTO, 3: Dim.AUTO}}, more=[((image(1, 3, 20),), {})])


@program
def convolutions():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Conv1d(4, 6, 3, padding="same")
            self.up = nn.ConvTranspose1d(6, 4, 4, stride=2, padding=1)
            self.three = nn.Conv3d(1, 2, 3, padding=1)

        def forward(self, x):
            y = self.up(torch.tanh(self.one(x)))
            return self.three(y.unsqueeze(1).unsqueeze(-1)).sum(-1)

    return Spec(Net(), (torch.randn(2, 4, 10),))


@program
def unet():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Conv2d(3, 8, 3, padding=1)
            self.inner = nn.Conv2d(8, 8, 3, padding=1)
            self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
            self.out = nn.Conv2d(16, 2, 1)

        def forward(self, x):
            a = F.leaky_relu(self.down(x), 0.1)
            b = F.silu(self.inner(F.avg_pool2d(a, 2)))
            return self.out(torch.cat([a, self.up(b)], 1))

    return Spec(Net(), (image(),))


@program
def upsampling():
    def run(self, x):
        y = F.interpolate(self.conv(x), scale_factor=2.0, mode="bilinear", align_corners=False)
        return F.interpolate(y, size=(7, 9), mode="nearest")

    return Spec(Function(run, conv=nn.Conv2d(3, 4, 3)), (image(),))


class Attention(nn.Module):
    def __init__(self, width=16, heads=2, fused=True):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)

    def forward(self, x, mask=None):
        batch, length, width = x.shape
        split = lambda y: y.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            scores = q @ k.transpose(-1, -2) / math.sqrt(width // self.heads)
            if mask is not None:
                scores = scores.masked_fill(~mask, float("-inf"))
            y = torch.softmax(scores, -1) @ v
        return self.output(y.transpose(1, 2).reshape(batch, length, width))


class Encoder(nn.Module):
    def __init__(self, fused=True, layers=1):
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.position = nn.Parameter(torch.randn(1, 32, 16) * 0.1)
        self.attention = Attention(fused=fused)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, ids, mask=None):
        x = self.embedding(ids) + self.position[:, : ids.shape[1]]
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


def tokens(batch=2, length=6):
    return torch.randint(0, 20, (batch, length))


SEQUENCE = Dim("sequence", min=2, max=32)


@program
def encoder():
    return Spec(Encoder(), (tokens(),))


@program
def encoder_dynamic():
    return Spec(
        Encoder(), (tokens(),), dynamic={"ids": {0: BATCH, 1: SEQUENCE}}, more=[((tokens(3, 9),), {}), ((tokens(1, 2),), {})]
    )


@program
def encoder_decomposed():
    return Spec(
        Encoder(), (tokens(),), dynamic={"ids": {0: BATCH, 1: SEQUENCE}}, more=[((tokens(3, 9),), {})], decompose=True
    )


@program
def encoder_mask():
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    return Spec(Encoder(fused=False), (tokens(),), {"mask": mask})


@program
def transformer_layer():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True, activation="gelu")
    return Spec(layer, (torch.randn(2, 5, 16),))


@program
def multihead_attention():
    layer = nn.MultiheadAttention(16, 2, batch_first=True)
    return Spec(Function(lambda self, x: self.layer(x, x, x, need_weights=True), layer=layer), (torch.randn(2, 5, 16),))


@program
def lstm():
    return Spec(nn.LSTM(5, 7, num_layers=2, batch_first=True, bidirectional=True), (torch.randn(2, 4, 5),))


@program
def gru():
    return Spec(nn.GRU(5, 7), (torch.randn(4, 2, 5), torch.zeros(1, 2, 7)))


@program
def embedding_bag():
    def run(self, ids, offsets):
        return self.out(self.bag(ids, offsets))

    bag = nn.EmbeddingBag(20, 8, mode="sum")
    return Spec(Function(run, bag=bag, out=nn.Linear(8, 3)), (torch.randint(0, 20, (9,)), torch.tensor([0, 3, 5])))


@program
def buffer_mutated():
    def run(self, x):
        self.calls.add_(1)
        self.mean.mul_(0.5).add_(0.5 * x.mean(0))
        return x - self.mean, self.calls

    x = lambda: (torch.randn(3, 4),)
    return Spec(
        Function(run, calls=torch.zeros((), dtype=torch.int64), mean=torch.zeros(4)),
        x(),
        more=[(x(), {}), (x(), {})],
    )


@program
def buffer_mutated_functional():
    def run(self, x):
        self.mean.copy_(0.5 * self.mean + 0.5 * x.mean(0))
        return (x - self.mean) * self.weight

    x = lambda: (torch.randn(3, 4),)
    model = Function(run, mean=torch.zeros(4), weight=nn.Parameter(torch.randn(4)))
    return Spec(model, x(), more=[(x(), {}), (x(), {})], decompose=True)


@program
def input_mutated():
    def run(self, x):
        x.add_(1)
        return x * 2

    return Spec(Function(run), (torch.randn(3),), decompose=True)


@program
def batch_norm_training():
    return Spec(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), (image(),), more=[((image(),), {})], train=True)


@program
def cond():
    def run(self, x):
        return torch.cond(x.sum() > 0, lambda x: self.yes(x), lambda x: self.no(x) * 2, (x,))

    return Spec(
        Function(run, yes=nn.Linear(4, 4), no=nn.Linear(4, 4)),
        (torch.ones(2, 4),),
        more=[((-torch.ones(2, 4),), {})],
    )


@program
def cond_nested():
    def run(self, x, y):
        def inner(x, y):
            return torch.cond(y.mean() > 0, lambda x, y: (x + y, x * 3), lambda x, y: (x - y, y * 2), (x, y))

        return torch.cond(x.mean() > 0, inner, lambda x, y: (x * y, x + 1), (x, y))

    one = torch.ones(3)
    return Spec(Function(run), (one, one), more=[((one, -one), {}), ((-one, one), {})])


@program
def cond_on_size():
    def run(self, x):
        return torch.cond(x.shape[0] > 4, lambda x: x.cos(), lambda x: x.sin(), (x,))

    return Spec(Function(run), (torch.randn(3, 2),), dynamic={"args": ({0: Dim("n", min=2, max=32)},)}, more=[((torch.randn(6, 2),), {})])


@program
def while_loop():
    from torch._higher_order_ops.while_loop import while_loop as loop

    def run(self, x, n):
        return loop(lambda x, n: (x.abs().sum() < 50) & (n < 20), lambda x, n: (x * 1.5 + 1, n + 1), (x, n))

    return Spec(Function(run), (torch.randn(3), torch.tensor(0)), more=[((torch.full((3,), 40.0), torch.tensor(3)), {})])


@program
def no_grad():
    def run(self, x):
        with torch.no_grad():
            y = self.a(x)
        return self.b(y)

    return Spec(Function(run, a=nn.Linear(4, 4), b=nn.Linear(4, 2)), (torch.randn(2, 4),))


@program
def autocast_off():
    def run(self, x):
        with torch.autocast("cpu", enabled=False):
            return self.a(x).relu()

    return Spec(Function(run, a=nn.Linear(4, 4)), (torch.randn(2, 4),))


@program
def dictionaries():
    def run(self, inputs):
        x, y = inputs["image"], inputs["text"]
        return {"sum": x + y, "product": x * y}

    return Spec(Function(run), ({"image": torch.randn(2, 3), "text": torch.randn(2, 3)},))


@program
def mixed_structure():
    def run(self, pair, items, *, options):
        a, (b, c) = pair
        return {"first": a + items[0], "rest": (b - c, None, items[1] * options["scale"])}

    args = ((torch.randn(3), (torch.randn(3), torch.randn(3))), [torch.randn(3), torch.randn(3)])
    return Spec(Function(run), args, {"options": {"scale": torch.randn(3), "kind": 3}})


Point = namedtuple("Point", ["x", "y"])
torch.utils._pytree._register_namedtuple(Point, serialized_type_name="model.Point")


@program
def named_tuple():
    def run(self, point):
        return Point(point.x + point.y, point.x - point.y)

    return Spec(Function(run), (Point(torch.randn(2), torch.randn(2)),))


@program
def keywords():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(3, 4)

        def forward(self, x, *, other, scale=None, bias=None):
            y = self.a(x) + self.b(other)
            return y if bias is None else y + bias

    return Spec(Net(), (torch.randn(2, 4),), {"other": torch.randn(2, 3), "bias": torch.randn(4)})


@program
def constants_in():
    def run(self, x, n, mode, flag, nothing=None):
        y = x * n
        return y.sum(0) if mode == "sum" and flag else y

    return Spec(Function(run), (torch.randn(3, 2), 3, "sum", True))


@program
def integer_input():
    def run(self, x, n):
        return x[:, :n].sum(1) * n

    return Spec(
        Function(run),
        (torch.randn(2, 9), 4),
        dynamic={"args": (None, Dim.DYNAMIC)},
        more=[((torch.randn(2, 9), 6), {})],
    )


@program
def lists_out():
    return Spec(Function(lambda self, x: [part * 2 for part in torch.split(x, [1, 2, 3])]), (torch.randn(6, 2),))


@program
def shared_weight():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(12, 8)
            self.inner = nn.Linear(8, 8)
            self.out = nn.Linear(8, 12, bias=False)
            self.out.weight = self.embedding.weight

        def forward(self, ids):
            return self.out(torch.relu(self.inner(self.embedding(ids))))

    return Spec(Net(), (torch.randint(0, 12, (2, 5)),))


@program
def strided_weight():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 5).t())
            self.register_buffer("part", torch.randn(10, 10)[2:7, ::2])

        def forward(self, x):
            return F.linear(x, self.weight) + x[:, :5] @ self.part

    return Spec(Net(), (torch.randn(3, 8),))


@program
def bool_mask():
    def run(self, x, mask):
        y = torch.where(mask, x, torch.zeros_like(x))
        return y.masked_fill(~mask, -1.0), (mask & (x > 0)).any(), mask.logical_not()

    return Spec(Function(run), (torch.randn(3, 4), torch.rand(3, 4) > 0.5))


@program
def truth_values():
    def run(self, x, mask):
        full = torch.full((4,), True) & mask
        return torch.where(full, mask, False), torch.full_like(x, True), mask == True, mask.masked_fill(x > 0, True)  # noqa: E712

    return Spec(Function(run), (torch.randn(4), torch.rand(4) > 0.5), decompose=True)


@program
def scalars_out():
    return Spec(Function(lambda self, x: (x.sum(), x.shape[0], 2.5, x.mean())), (torch.randn(4, 2),), dynamic={"args": ({0: BATCH},)}, more=[((torch.randn(7, 2),), {})])


@program
def slicing():
    def run(self, x):
        y = x[:, 1:-1:2, ..., None]
        z = torch.cat([x[..., :2], x[..., -2:]], -1).flip(1)
        w = x.clone()
        w[:, 0] = 7.0
        w[1:, :, 2] += 1.0
        return y, z, w, x[torch.tensor([1, 0]), :, torch.tensor([0, 2])]

    return Spec(Function(run), (torch.randn(3, 6, 5),))


@program
def index_put():
    def run(self, x, i, v):
        y = x.clone()
        y[:, i] = v
        return y.index_select(1, i), torch.gather(x, 1, i.unsqueeze(0).expand(2, 3)), y

    return Spec(Function(run), (torch.randn(2, 6), torch.tensor([0, 4, 5]), torch.randn(2, 3)))


@program
def constants():
    def run(self, x):
        table = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        grid = torch.arange(0, 4, dtype=torch.float32).reshape(2, 2)
        return x @ table + grid + torch.full((2,), 0.5) + torch.linspace(0, 1, 2) + torch.eye(2) * self.scale

    return Spec(Function(run, scale=torch.tensor(3.0)), (torch.randn(2, 2),))


@program
def sizes():
    def run(self, x):
        b, n = x.shape
        half = (n + 1) // 2
        y = torch.arange(n) % 3
        z = x.new_zeros(b, n * 2 + half)
        return x.new_ones(half), y, z, torch.ones(max(b, n), min(b, 3)), x.reshape(-1) / (b * n), x.repeat(2, 1)

    sizes = {0: Dim("b", min=3, max=32), 1: Dim("n", min=3, max=32)}
    return Spec(Function(run), (torch.randn(3, 5),), dynamic={"args": (sizes,)}, more=[((torch.randn(9, 4),), {})])


@program
def item():
    def run(self, x, n):
        k = n.item()
        torch._check(k >= 1)
        torch._check(k <= 8)
        return torch.zeros(k, 2) + x[:2], k

    return Spec(Function(run), (torch.randn(4), torch.tensor(3)), more=[((torch.randn(4), torch.tensor(5)), {})])


@program
def topk_sort():
    def run(self, x):
        values, indices = torch.topk(x, 3, dim=1)
        ordered, places = torch.sort(x, descending=True)
        smallest, at = x.min(dim=1)
        return values, indices, ordered, places, smallest, at, x.argmax(1), torch.cumsum(x, 1)

    return Spec(Function(run), (torch.randn(3, 6),))


@program
def arithmetic():
    def run(self, x, n):
        y = 2 - x / 3 + x**2 + 2**x.clamp(-2, 2) - torch.rsqrt(x.abs() + 1)
        m = n // 2 + n % 3 - (n << 1) + (n >> 1) + ~n
        return y, m, torch.maximum(x, torch.tensor(0.5)), x.fmod(1.5), torch.remainder(x, 0.7), n / 3, n.float() * 1.5

    return Spec(Function(run), (torch.randn(3, 4), torch.randint(-9, 9, (5,))))


@program
def activations():
    names = ["elu", "hardswish", "hardsigmoid", "mish", "softplus", "selu", "gelu", "relu6", "logsigmoid", "softsign"]

    def run(self, x):
        x = self.conv(x)
        return torch.stack([getattr(F, name)(x) for name in names]) + F.gelu(x, approximate="tanh") + F.glu(torch.cat([x, x], 1), 1)

    return Spec(Function(run, conv=nn.Conv2d(3, 4, 3)), (image(1),))


@program
def norms():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.group, self.instance, self.layer = nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True), nn.LayerNorm([8, 10, 10])
            self.local, self.rms = nn.LocalResponseNorm(3), nn.RMSNorm(10)

        def forward(self, x):
            x = self.conv(x)
            return self.group(x) + self.instance(x) + self.layer(x) + self.local(x) + self.rms(x) + F.normalize(x, dim=1)

    return Spec(Net(), (image(),))


@program
def norms_decomposed():
    spec = norms()
    spec.decompose = True
    return spec


@program
def pooling():
    def run(self, x):
        y, indices = F.max_pool2d(x, 2, return_indices=True)
        z = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
        return y, indices, z, F.adaptive_max_pool2d(x, (2, 3)), F.lp_pool2d(x.abs(), 2, 3), F.max_pool2d(x, 3, 2, ceil_mode=True)

    return Spec(Function(run), (image(),))


@program
def padding():
    def run(self, x):
        y = F.pad(x, (1, 2), value=0.5)
        z = F.pad(x, (1, 1, 2, 0), mode="reflect")
        return self.conv(F.pad(x, (0, 1, 1, 0), mode="replicate")), y, z, F.pixel_shuffle(self.wide(x), 2)

    return Spec(Function(run, conv=nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), wide=nn.Conv2d(3, 4, 1)), (image(),))


@program
def matrices():
    def run(self, x, y):
        return x @ y, torch.einsum("bij,bjk->bik", x, y), torch.baddbmm(self.c, x, y), torch.outer(x[0, 0], y[0, :, 0]), torch.addmm(self.c, x[0], y[1], beta=0.5)

    return Spec(Function(run, c=torch.randn(3, 5)), (torch.randn(2, 3, 4), torch.randn(2, 4, 5)))


@program
def half_types():
    def run(self, x):
        return x.to(torch.float16).float() + x.bfloat16().to(x.dtype), x.double().sum(), x.to(torch.int32), x.long().type_as(x)

    return Spec(Function(run), (torch.randn(3, 4),))


@program
def dropout():
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2))
    return Spec(model, (torch.randn(3, 4),))


@program
def mlp_decomposed():
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8), nn.Softmax(-1))
    return Spec(model, (torch.randn(3, 16),), decompose=True, dynamic={"input": {0: BATCH}}, more=[((torch.randn(7, 16),), {})])


@program
def statistics():
    def run(self, x):
        return x.std(1), x.var(0, unbiased=False), torch.logsumexp(x, 1), x.norm(dim=1), x.prod(1), x.amax((0, 1)), torch.linalg.vector_norm(x)

    return Spec(Function(run), (torch.randn(3, 4),))


@program
def pt2e_cnn():
    """Quantized by torchao's PT2E, which is not among the packages of requirements.txt: pip install torchao."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as quantizer

    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU()]
    original = warmed_up(nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 64, 5)))
    choice = quantizer.X86InductorQuantizer()
    choice.set_global(quantizer.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(export(original, (image(),)).module(), choice)
    for _ in range(4):
        prepared(image())
    return Spec(convert_pt2e(prepared), (image(),), original=original)


@program
def no_arguments():
    return Spec(Function(lambda self: self.table * 2, table=torch.randn(3)), ())


def arrays(prefix, tree, out):
    """The leaves of an argument, each under its path."""
    if isinstance(tree, torch.Tensor):
        out[prefix] = tree.detach().clone().numpy()
    elif isinstance(tree, dict):
        for key, value in tree.items():
            arrays(f"{prefix}.{key}", value, out)
    elif hasattr(tree, "_fields"):
        for key in tree._fields:
            arrays(f"{prefix}.{key}", getattr(tree, key), out)
    elif isinstance(tree, (tuple, list)):
        for index, value in enumerate(tree):
            arrays(f"{prefix}.{index}", value, out)
    elif isinstance(tree, (bool, int, float)):
        out[prefix] = np.array(tree)


def without_paths(text: str) -> str:
    """Lines of PyTorch's own are left out; ours are in model.py."""
    text = re.sub(r'File \\"[^"]*site-packages/(?:[^"\\]*)\\", line \d+, in [^\\]*(?:\\n    (?:[^\\"]|\\\\.|\\[^n])*)?(?:\\n)?', "", text)
    return re.sub(r'File \\"/[^"\\]*/([^"/\\]*)\\"', r'File \\"model.py\\"', text)


def repacked(content: bytes) -> bytes:
    """The archive without example inputs and paths, compressed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            if "sample_inputs" in name or "example_inputs" in name or "serialization_id" in name:
                continue
            data = source.read(name)
            if name.endswith(".json"):
                data = without_paths(data.decode()).encode()
            target.writestr(zipfile.ZipInfo(re.sub(r"^[^/]*/", "model/", name), (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def flat_archive(exported) -> bytes:
    """What torch.export.save wrote before torch 2.8."""
    from torch._export.serde.serialize import serialize

    parts = serialize(exported)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as target:
        target.writestr("serialized_exported_program.json", parts.exported_program)
        target.writestr("serialized_state_dict.pt", parts.state_dict)
        target.writestr("serialized_constants.pt", parts.constants)
        target.writestr("serialized_example_inputs.pt", parts.example_inputs)
        target.writestr("version", "8.2")
    return out.getvalue()


def names_of(model, args, kwargs):
    """The names that the module's arguments have."""
    if isinstance(model, Function):
        import inspect

        parameters = list(inspect.signature(model.function).parameters)[1:]
        positional = [f"args_{index}" for index in range(len(args))]
        return positional, list(kwargs)
    import inspect

    parameters = list(inspect.signature(model.forward).parameters)
    return parameters[: len(args)], list(kwargs)


def write(name: str, folder: Path) -> None:
    torch.manual_seed(sum(map(ord, name)))
    spec = PROGRAMS[name]()
    model = spec.model
    if spec.original is None:
        model.train(spec.train)
    dynamic = spec.dynamic
    exported = export(model, spec.args, spec.kwargs, dynamic_shapes=dynamic, strict=spec.strict)
    if spec.decompose:
        exported = exported.run_decompositions()
    content = io.BytesIO()
    torch.export.save(exported, content)
    content = flat_archive(exported) if spec.flat else content.getvalue()
    reference = spec.original or exported.module()
    runs: dict[str, np.ndarray] = {}
    for index, (args, kwargs) in enumerate([(spec.args, spec.kwargs), *spec.more]):
        positional, named = names_of(spec.original or model, args, kwargs)
        for key, value in [*zip(positional, args), *kwargs.items()]:
            arrays(f"{index}/{key}", value, runs)
        with torch.no_grad():
            result = reference(*args, **kwargs)
        leaves = torch.utils._pytree.tree_leaves(result)
        leaves = [leaf for leaf in leaves if leaf is not None]
        for place, leaf in enumerate(leaves):
            arrays(f"{index}/output_{place}", leaf, runs)
        if not leaves:
            raise SystemExit(f"{name}: no outputs")
    (folder / f"{name}.pt2").write_bytes(repacked(content))
    np.savez_compressed(folder / f"{name}.npz", **runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(PROGRAMS)}")
    parser.add_argument("--out", type=Path, default=Path("tests/import/programs"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in arguments.names or PROGRAMS:
        try:
            write(name, arguments.out)
        except Exception as error:  # noqa: BLE001: all that fail are told at the end
            failed.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
