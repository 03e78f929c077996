"""What a quantized model keeps of the float one: the figures of docs/accuracy.md.

Run by the Python that `make models` sets up, on stock PyTorch: nothing of jitquant takes part.
"""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def load_arrays(path: Path, samples: int | None) -> list[Tensor]:
    with np.load(path) as arrays:
        return [torch.from_numpy(array[:samples] if array.ndim else array) for array in arrays.values()]


def outputs(model: Path, data: list[Tensor], batch: int) -> Tensor:
    module = torch.jit.load(str(model)).eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(data[0]), batch):
            parts.append(module(*(array[start : start + batch] if array.ndim else array.item() for array in data)))
    return torch.cat(parts)


def sqnr_db(float_: Tensor, int8: Tensor) -> float:
    noise = (float_.double() - int8.double()).square().sum()
    return math.inf if noise == 0 else 10 * math.log10(float(float_.double().square().sum() / noise))


def top1(float_: Tensor, int8: Tensor) -> float:
    return float((float_.argmax(1) == int8.argmax(1)).double().mean())


def nearest(embeddings: Tensor) -> Tensor:
    """Of each unit-length row the other row that is nearest."""
    return (embeddings @ embeddings.T).fill_diagonal_(-2).argmax(1)


def accuracy(scores: Tensor, labels: Tensor) -> float:
    return float((scores.argmax(1) == labels).double().mean())


def compare(float_: Tensor, int8: Tensor, kind: str, labels: Tensor | None = None) -> dict[str, float]:
    if kind == "digits":
        return {"accuracy": accuracy(int8, labels) - accuracy(float_, labels)}
    if kind == "stream":
        return {"probability": -float((float_ - int8).abs().max())}
    if kind == "sentences":
        cosine = torch.nn.functional.cosine_similarity(float_, int8).mean()
        same = (nearest(float_) == nearest(int8)).double().mean()
        return {"cosine": float(cosine), "same_nearest": float(same)}
    return {"sqnr_db": sqnr_db(float_, int8), "top1": top1(float_, int8)}

