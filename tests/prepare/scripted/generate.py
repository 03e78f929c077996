"""Writes the scripted and traced modules beside this file.

They hold what `Module::define` cannot express: interfaces, `torch.nn` as it is scripted with its checks, tracing. Made
with torch 2.13.0: `python generate.py`.
"""

import io
import os
import zipfile
from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

torch.manual_seed(0)
HERE = os.path.dirname(os.path.abspath(__file__))


def save(compiled, name):
    """Saves without the records of where the code lay on the machine that ran this."""
    buffer = io.BytesIO()
    torch.jit.save(compiled, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(os.path.join(HERE, f"{name}.pt"), "w") as target:
        for entry in source.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                target.writestr(zipfile.ZipInfo(entry.filename), source.read(entry), zipfile.ZIP_DEFLATED)


def train_batch_norms(module):
    """Statistics that a wrong folding would not leave unseen."""
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(0.5, 2)
            if norm.affine:
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.uniform_(norm.bias, -1, 1)
    return module.eval()


def script(module):
    save(torch.jit.script(train_batch_norms(module)), type(module).__name__)


def trace(module, *inputs):
    save(torch.jit.trace(train_batch_norms(module), inputs), type(module).__name__)


@torch.jit.interface
class Layer(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        pass


class Indexed(nn.Module):
    """A layer chosen by number."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 4)])

    def forward(self, x: Tensor, index: int) -> Tensor:
        layer: Layer = self.layers[index]
        return layer.forward(x)


class Keyed(nn.Module):
    """A layer chosen by key."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleDict({"one": nn.Linear(4, 2), "two": nn.Linear(4, 3)})

    def forward(self, x: Tensor, key: str) -> Tensor:
        head: Layer = self.heads[key]
        return head.forward(x)


class PaddedConv(nn.Conv2d):
    """Pads by itself, as the convolutions of EfficientNet do."""

    def forward(self, x):
        return F.conv2d(F.pad(x, [0, 1, 0, 1]), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Padded(nn.Module):
    """A subclassed convolution, batch norm and relu6, traced."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = PaddedConv(3, 8, 2, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.second_norm = PaddedConv(8, 8, 2, groups=8, bias=False), nn.BatchNorm2d(8)

    def forward(self, x):
        x = F.relu6(self.norm(self.first(x)))
        return F.relu6(self.second_norm(self.depthwise(x)))


class Norms(nn.Module):
    """Batch norms after layers of every kind, scripted with the checks that `torch.nn` makes."""

    def __init__(self):
        super().__init__()
        self.conv1d, self.norm1d = nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)
        self.conv2d, self.norm2d = nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6, affine=False)
        self.conv3d, self.norm3d = nn.Conv3d(2, 4, 2, bias=False), nn.BatchNorm3d(4)
        self.transposed, self.transposed_norm = nn.ConvTranspose2d(6, 4, 2, groups=2), nn.BatchNorm2d(4)
        self.linear, self.linear_norm = nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7)

    def forward(self, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        a = F.relu(self.norm1d(self.conv1d(a)))
        b = self.transposed_norm(self.transposed(self.norm2d(self.conv2d(b))))
        return a, b, self.norm3d(self.conv3d(c)), self.linear_norm(self.linear(d)).relu_()


class Recurrent(nn.Module):
    """Recurrent layers of every kind, several layers, both directions."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 16, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(32, 16, bias=False)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.lstm(x)
        x, _ = self.gru(x.transpose(0, 1))
        return self.fc(x)


class Cells(nn.Module):
    """Recurrent cells with a state that the caller keeps."""

    def __init__(self):
        super().__init__()
        self.lstm, self.gru, self.rnn = nn.LSTMCell(8, 16), nn.GRUCell(16, 12), nn.RNNCell(12, 8)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        h, c = self.lstm(x, (h, c))
        return self.rnn(self.gru(h)), h, c


if __name__ == "__main__":
    script(Indexed())
    script(Keyed())
    trace(Padded(), torch.rand(1, 3, 8, 8))
    script(Norms())
    script(Recurrent())
    script(Cells())
