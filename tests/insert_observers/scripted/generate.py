"""Writes the scripted and traced modules beside this file.

They hold what `Module::define` cannot express: called functions (`torch.nn.functional`), exceptions, interfaces,
tracing. Made with torch 2.13.0: `python generate.py`. Inputs are listed in ../files.rs.
"""

import io
import os
import zipfile
from typing import List, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

torch.manual_seed(0)
HERE = os.path.dirname(os.path.abspath(__file__))
IMAGE = torch.rand(1, 2, 8, 8)


def save(compiled, name):
    """Saves without the records of where the code lay on the machine that ran this."""
    buffer = io.BytesIO()
    torch.jit.save(compiled, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(os.path.join(HERE, f"{name}.pt"), "w") as target:
        for entry in source.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                target.writestr(zipfile.ZipInfo(entry.filename), source.read(entry), zipfile.ZIP_DEFLATED)


def script(module):
    save(torch.jit.script(module.eval()), type(module).__name__)


def trace(module, *inputs):
    save(torch.jit.trace(module.eval(), inputs), type(module).__name__)


class FunctionalRelu(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.other, self.bn = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        x = F.relu(self.conv(x))
        y = F.relu(self.bn(self.other(x)), inplace=True)
        y = F.relu(x + y)
        y = F.relu(x * y)
        y += x
        return F.relu(y)


class FunctionalLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        x = F.relu(F.linear(x, self.fc.weight, self.fc.bias))
        return F.linear(x, self.fc.weight)


class FunctionalPooling(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.other = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = F.max_pool2d(F.dropout(self.conv(x), 0.5, self.training), 2)
        x = F.interpolate(F.avg_pool2d(x, 1), scale_factor=2.0)
        x = F.leaky_relu(F.hardtanh(self.other(x), 0.0, 6.0), 0.1)
        return torch.flatten(F.adaptive_avg_pool2d(x, (2, 2)), 1)


class FunctionalNorms(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.ln = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.LayerNorm(8)
        self.gn, self.inorm = nn.GroupNorm(2, 4), nn.InstanceNorm2d(4)

    def forward(self, x):
        x = self.inorm(self.gn(self.ln(self.bn(self.conv(x)))))
        return F.hardswish(F.elu(F.celu(x)))


class Activations(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.layers = nn.Sequential(nn.Sigmoid(), nn.Tanh(), nn.Hardsigmoid(), nn.Hardtanh(), nn.ReLU6(), nn.LeakyReLU())

    def forward(self, x):
        return self.fc(self.layers(self.fc(x)))


def shuffle(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class PassingFunction(nn.Module):
    """A function of the model's own that hands observation on."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.b(shuffle(self.a(x), 2))


def project(x: Tensor, weight: Tensor) -> Tensor:
    return torch.sin(F.linear(x, weight))


class ComputingFunction(nn.Module):
    """A function of the model's own with a linear layer in it, which stays in float."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(project(x, self.fc.weight))


class Raising(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        if x.dim() != 2:
            raise ValueError("two dimensions expected")
        y = self.a(x)
        if y.size(0) > 100:
            z = y
        elif y.size(0) > 0:
            z = self.b(y)
        else:
            raise ValueError("nothing")
        return z


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.heads = nn.ModuleDict({"one": nn.Linear(4, 2), "two": nn.Linear(4, 3)})

    def forward(self, x):
        for layer in self.layers:
            x = F.relu(layer(x))
        results = []
        for head in self.heads.values():
            results.append(head(x))
        return torch.cat(results, 1)


class Loop(nn.Module):
    """A linear layer that is run a number of times which only the data tells."""

    def __init__(self):
        super().__init__()
        self.first, self.repeated, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, n: int):
        x = self.first(x)
        for _ in range(n):
            x = torch.relu(self.repeated(x))
        return self.last(x)


class Chosen(nn.Module):
    """Which of two modules is run is decided by a value, so that no path of attributes leads to it."""

    def __init__(self):
        super().__init__()
        shared = torch.jit.script(nn.Linear(4, 4))
        self.fc, self.a, self.b = nn.Linear(4, 4), shared, shared

    def forward(self, x, first: bool):
        layer = self.a if first else self.b
        return layer.forward(torch.sin(self.fc(x)))


@torch.jit.interface
class Head(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        pass


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.fc(x))


class Interface(nn.Module):
    head: Head

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), Small()

    def forward(self, x: Tensor) -> Tensor:
        return self.head.forward(self.body(x))


class Forked(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        future = torch.jit.fork(self.a, x)
        y = self.b(x)
        return torch.relu(torch.jit.wait(future) + y)


class OptionalSum(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x, other: Optional[Tensor], parts: List[Tensor]):
        y = self.fc(x)
        if other is not None:
            y = self.fc(torch.sin(other))
        return y, self.fc(torch.sin(parts[0]))


class BasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu, self.downsample = nn.ReLU(inplace=True), None
        if inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Residual(nn.Module):
    """A residual network in the shape of torchvision's."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(2)
        self.layer1 = nn.Sequential(BasicBlock(4, 4, 1), BasicBlock(4, 4, 1))
        self.layer2 = nn.Sequential(BasicBlock(4, 6, 2), BasicBlock(6, 6, 1))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(6, 3)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.avgpool(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(x, 1))


class ResidualTraced(Residual):
    pass


class Attention(nn.Module):
    """One head of attention, as the linear layers and products of a transformer."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(4, 4) for _ in range(4))
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        scores = torch.softmax(self.q(x) @ self.k(x).transpose(-2, -1) / 2.0, -1)
        return self.norm(x + self.out(scores @ self.v(x)))


class AttentionTraced(Attention):
    pass


class DepthwiseTraced(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU6(inplace=True),
            nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(6), nn.ReLU6(inplace=True),
            nn.Conv2d(6, 2, 1, bias=False), nn.BatchNorm2d(2),
        )
        self.up = nn.ConvTranspose2d(2, 2, 2, 2)

    def forward(self, x):
        return self.up(x + self.layers(x))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.fc = nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        y, _ = self.lstm(x)
        return self.fc(y)


for model in [
    FunctionalRelu(), FunctionalLinear(), FunctionalPooling(), FunctionalNorms(), Activations(), PassingFunction(),
    ComputingFunction(), Raising(), Layers(), Loop(), Interface(), Forked(), OptionalSum(), Residual(), Attention(),
    Recurrent(), Chosen(),
]:
    script(model)
trace(ResidualTraced(), IMAGE)
trace(AttentionTraced(), torch.rand(1, 3, 4))
trace(DepthwiseTraced(), IMAGE)
