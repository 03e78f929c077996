#!/usr/bin/env python3
"""What libtorch's own static quantization (torch.ao.quantization.quantize_jit) makes of a TorchScript file.

    reference.py MODEL.pt --calibrate CALIBRATION.npz --data EVALUATION.npz [--labels NAME] [--batch N] [--save FOLDER]

The figures that jitquant's are held against: weights per channel (min-max), activations by each observer in turn.
SQNR is 10 log10(sum y^2 / sum (y - q)^2) over all outputs of the evaluation data, y float and q INT8.
"""

import argparse
import io
import json
import math
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.ao.quantization import (
    HistogramObserver,
    MinMaxObserver,
    PerChannelMinMaxObserver,
    QConfig,
    get_default_qconfig,
)
from torch.ao.quantization.quantize_jit import quantize_jit

WEIGHT = PerChannelMinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_channel_symmetric)
QCONFIGS = {
    "minmax": QConfig(activation=MinMaxObserver.with_args(dtype=torch.quint8), weight=WEIGHT),
    "histogram": QConfig(activation=HistogramObserver.with_args(dtype=torch.quint8), weight=WEIGHT),
    # libtorch's default for servers: histogram over 7 bits (reduce_range).
    "fbgemm-default": get_default_qconfig("fbgemm"),
}


def batches(path: Path, labels: str | None, size: int) -> tuple[list[tuple[Tensor, ...]], Tensor | None]:
    """The file's arrays, in its order, cut into batches along the first dimension; the labels apart."""
    with np.load(path) as arrays:
        answers = torch.from_numpy(arrays[labels]) if labels else None
        inputs = [torch.from_numpy(arrays[name]) for name in arrays.files if name not in (labels, "labels")]
    return list(zip(*(array.split(size) for array in inputs))), answers


def outputs(model: torch.jit.ScriptModule, data: list[tuple[Tensor, ...]]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(*batch) for batch in data])


def quantized(source: Path, qconfig: QConfig, data: list[tuple[Tensor, ...]]) -> torch.jit.ScriptModule:
    def calibrate(model: torch.jit.ScriptModule, every: list[tuple[Tensor, ...]]) -> None:
        with torch.no_grad():
            for batch in every:
                model(*batch)

    model = torch.jit.load(str(source)).eval()
    return quantize_jit(model, {"": qconfig}, calibrate, [data], inplace=False, debug=False)


def comparison(y: Tensor, q: Tensor, answers: Tensor | None) -> dict[str, float]:
    error = (y - q).double().pow(2).sum().item()
    signal = y.double().pow(2).sum().item()
    row = {
        "sqnr_db": 10 * math.log10(signal / error) if error else math.inf,
        "cosine": torch.nn.functional.cosine_similarity(y, q).mean().item(),
        "largest_difference": (y - q).abs().max().item(),
        "top1_agreement": (y.argmax(1) == q.argmax(1)).float().mean().item(),
    }
    if answers is not None:
        row["accuracy_float"] = (y.argmax(1) == answers).float().mean().item()
        row["accuracy_int8"] = (q.argmax(1) == answers).float().mean().item()
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description="Figures of libtorch's own static quantization.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibrate", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--labels", help="the array of --data that holds the right classes")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--observer", choices=QCONFIGS, action="append", help="default: all")
    parser.add_argument("--engine", default="x86", choices=torch.backends.quantized.supported_engines)
    parser.add_argument("--save", type=Path, help="folder for the INT8 files")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.backends.quantized.engine = arguments.engine

    calibration, _ = batches(arguments.calibrate, None, arguments.batch)
    evaluation, answers = batches(arguments.data, arguments.labels, arguments.batch)
    y = outputs(torch.jit.load(str(arguments.model)).eval(), evaluation)
    for name in arguments.observer or QCONFIGS:
        row: dict[str, object] = {"model": arguments.model.name, "engine": arguments.engine, "observer": name}
        try:
            model = quantized(arguments.model, QCONFIGS[name], calibration)
            file = io.BytesIO()
            torch.jit.save(model, file)
            row |= {"bytes_float": arguments.model.stat().st_size, "bytes_int8": len(file.getvalue())}
            if arguments.save:
                arguments.save.mkdir(parents=True, exist_ok=True)
                (arguments.save / f"{arguments.model.stem}.{name}.pt").write_bytes(file.getvalue())
            row |= comparison(y, outputs(model, evaluation), answers)
        except RuntimeError as error:
            row["error"] = str(error).strip().splitlines()[0]
        print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
