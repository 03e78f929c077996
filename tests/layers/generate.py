"""Writes the scripted and traced modules beside this file: layers of `torch.nn` as they are scripted and traced.

Made with torch 2.13.0: `python generate.py`.
"""

import io
import os
import zipfile

import torch
from torch import nn

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


def script(module, name):
    save(torch.jit.script(module.eval()), name)


def trace(module, name, *shapes):
    with torch.no_grad():
        save(torch.jit.trace(module.eval(), tuple(torch.randn(shape) for shape in shapes), check_trace=False), name)


class Itself(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        y, _ = self.attention(x, x, x, need_weights=False)
        return self.head(y)


class Cross(nn.Module):
    def __init__(self, **sizes):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True, **sizes)
        self.head = nn.Linear(16, 5)

    def forward(self, x, memory):
        y, _ = self.attention(x, memory, memory, need_weights=False)
        return self.head(y)


class Masked(nn.Module):
    """With a mask of each kind in the fast path."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True, activation="gelu")
        self.register_buffer("mask", torch.ones(6, 6, dtype=torch.bool).triu(1))

    def forward(self, x):
        return self.layer(x, src_mask=self.mask)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.layer(x))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(16, 4, 32, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x, memory):
        return self.head(self.layer(x, memory))


class Crnn(nn.Module):
    """Convolutions, then a recurrent layer."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d((4, 1)))
        self.recurrent = nn.LSTM(16, 12, bidirectional=True, batch_first=True)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        y = self.features(x).permute(0, 3, 1, 2).flatten(2)
        y, _ = self.recurrent(y)
        return self.head(y)


class Projection(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent = nn.LSTM(8, 12, proj_size=6, num_layers=2, bidirectional=True)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        y, _ = self.recurrent(x)
        return self.head(y)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent = nn.RNN(8, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        y, _ = self.recurrent(x)
        return self.head(y)


class Cells(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRUCell(8, 12)
        self.rnn = nn.RNNCell(12, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        return self.head(self.rnn(self.gru(x)))


class Same(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, (4, 3), padding="same", dilation=(1, 2))
        self.b = nn.Conv2d(8, 8, 3, padding="valid")
        self.c = nn.Conv2d(8, 4, 2, padding="same")

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


script(Itself(), "attention_scripted")
trace(Itself(), "attention_traced", (4, 6, 16))
script(Cross(), "cross_scripted")
trace(Cross(), "cross_traced", (4, 6, 16), (4, 9, 16))
script(Cross(kdim=12, vdim=12), "cross_sizes_scripted")
trace(Masked(), "masked_traced", (4, 6, 16))
script(Encoder(), "encoder_scripted")
trace(Encoder(), "encoder_traced", (4, 6, 16))
trace(Decoder(), "decoder_traced", (4, 6, 16), (4, 9, 16))
script(Crnn(), "crnn_scripted")
trace(Crnn(), "crnn_traced", (2, 1, 8, 20))
script(Projection(), "projection_scripted")
script(Plain(), "plain_scripted")
script(Cells(), "cells_scripted")
script(Same(), "same_scripted")
trace(Same(), "same_traced", (2, 3, 12, 12))
