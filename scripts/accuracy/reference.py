"""What libtorch's own static quantization (`torch.ao.quantization.quantize_jit`) keeps of an image model of `make models`.

    .venv-models/bin/python scripts/accuracy/reference.py models resnet18.pt

Prints the figures for each of libtorch's usual observers: those in the column "libtorch" of `make accuracy`. It takes minutes.
"""

import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import torch
from torch.ao import quantization
from torch.ao.quantization.quantize_jit import quantize_jit

import figures

PER_CHANNEL = quantization.default_per_channel_weight_observer
QCONFIGS = {
    "min-max": quantization.QConfig(quantization.MinMaxObserver, PER_CHANNEL),
    "histogram": quantization.QConfig(quantization.HistogramObserver, PER_CHANNEL),
    "default of fbgemm": quantization.get_default_qconfig("fbgemm"),
}
CALIBRATION_SAMPLES = 64
EVALUATION_SAMPLES = 330
BATCH = 32


def run(model: torch.jit.ScriptModule, images: torch.Tensor) -> None:
    with torch.inference_mode():
        for batch in images.split(BATCH):
            model(batch)


def main() -> None:
    models, name = Path(sys.argv[1]), sys.argv[2]
    data = "lite_images" if name.startswith("efficientnet_lite") else "images"
    calibration = figures.load_arrays(models / f"{data}_calibration.npz", CALIBRATION_SAMPLES)[0]
    evaluation = figures.load_arrays(models / f"{data}_evaluation.npz", EVALUATION_SAMPLES)
    float_outputs = figures.outputs(models / name, evaluation, BATCH)
    for observer, qconfig in QCONFIGS.items():
        model = torch.jit.load(str(models / name)).eval()
        int8 = quantize_jit(model, {"": qconfig}, run, [calibration])
        with torch.inference_mode():
            int8_outputs = torch.cat([int8(batch) for batch in evaluation[0].split(BATCH)])
        found = figures.compare(float_outputs, int8_outputs, "images")
        print(f"{name}, {observer}: {found['sqnr_db']:.1f} dB, {found['top1']:.1%}", flush=True)


if __name__ == "__main__":
    main()
