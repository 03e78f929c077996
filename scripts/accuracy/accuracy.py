"""`make accuracy`: quantizes the models of `make models` and prints what each keeps, beside what others keep.

The INT8 files are run by stock PyTorch (figures.py). Models that are not there are left out, and said to be.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("PYTHONWARNINGS", "ignore")

import figures


@dataclass(frozen=True)
class Row:
    """A model, the options that quantize it, and what is asked of it."""

    name: str
    model: str
    data: str
    kind: str
    samples: int
    options: tuple[str, ...]
    targets: dict[str, float]
    libtorch: str
    nncf: str = ""
    calibration_samples: int = 64


SENTENCES = {"data": "sentences", "kind": "sentences", "samples": 200}
LITE = {"model": "efficientnet_lite0.pt", "data": "lite_images", "kind": "images", "samples": 330}
IMAGES = {"data": "images", "kind": "images", "samples": 330}

# The figures of libtorch and NNCF are not measured here. Those of libtorch on the torchvision models are the best of
# docs/models.md, and the targets 1.5 dB more. The digits classifier and silero_vad are not in the table yet.
ROWS = (
    Row("EfficientNet-Lite0", **LITE, options=(), targets={"top1": 0.94, "sqnr_db": 19.0},
        libtorch="46 % / 2.3 dB", nncf="90.0 % / 15.8 dB"),
    Row("EfficientNet-Lite0, learned rounding", **LITE, options=("--rounding", "learned"), targets={"top1": 0.96},
        libtorch="46 % / 2.3 dB", nncf="90.0 % / 15.8 dB"),
    Row("ResNet-18", "resnet18.pt", **IMAGES, options=(), targets={"sqnr_db": 20.7}, libtorch="19.2 dB"),
    Row("ResNet-18, learned rounding", "resnet18.pt", **IMAGES, options=("--rounding", "learned"),
        targets={"sqnr_db": 20.7}, libtorch="19.2 dB"),
    Row("ResNet-50, learned rounding", "resnet50.pt", **IMAGES, options=("--rounding", "learned"),
        targets={"sqnr_db": 14.4}, libtorch="12.9 dB"),
    Row("MobileNetV2, learned rounding", "mobilenet_v2.pt", **IMAGES, options=("--rounding", "learned"),
        targets={"sqnr_db": 4.7}, libtorch="3.2 dB"),
    Row("MiniLM-L6, dynamic, no data", "minilm_l6.pt", **SENTENCES, options=("--mode", "dynamic"),
        targets={"cosine": 0.998, "same_nearest": 0.93}, libtorch="0.975 / 73 %", calibration_samples=0),
    Row("MiniLM-L6, dynamic", "minilm_l6.pt", **SENTENCES, options=("--mode", "dynamic"),
        targets={"cosine": 0.998, "same_nearest": 0.93}, libtorch="0.975 / 73 %"),
    Row("MiniLM-L6, static", "minilm_l6.pt", **SENTENCES, options=(),
        targets={"cosine": 0.998, "same_nearest": 0.93}, libtorch="0.864 / 57 %", nncf="0.9973 / 91.4 %"),
)


def measure(row: Row, jitquant: str, models: Path, work: Path, references: dict) -> dict[str, float]:
    int8 = work / "int8.pt"
    command = [jitquant, "quantize", str(models / row.model), "-o", str(int8), *row.options]
    if row.calibration_samples:
        command += ["--calibrate", str(models / f"{row.data}_calibration.npz")]
        command += ["--samples", str(row.calibration_samples), "--batch-size", "32"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    arrays = figures.load_arrays(models / f"{row.data}_evaluation.npz", row.samples)
    batch = 50 if row.kind == "sentences" else 33
    if row.model not in references:
        references[row.model] = figures.outputs(models / row.model, arrays, batch)
    return figures.compare(references[row.model], figures.outputs(int8, arrays, batch), row.kind)


def shown(name: str, value: float) -> str:
    return {"top1": f"{value:.1%}", "same_nearest": f"{value:.1%}", "cosine": f"{value:.5f}"}.get(name, f"{value:.1f} dB")


def main() -> None:
    jitquant, models, output = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    only = sys.argv[4:]
    results, references = [], {}
    line = "{:38} {:22} {:16} {:18} {:22} {}"
    print(line.format("model", "jitquant", "libtorch", "NNCF", "target", ""))
    for row in ROWS:
        if only and not any(word.lower() in row.name.lower() for word in only):
            continue
        if not (models / row.model).exists():
            print(line.format(row.name, "not there: make models", "", "", "", ""))
            continue
        with tempfile.TemporaryDirectory() as work:
            found = measure(row, jitquant, models, Path(work), references)
        reached = all(found[name] >= target for name, target in row.targets.items())
        print(line.format(row.name, " / ".join(shown(*item) for item in found.items()), row.libtorch, row.nncf,
                          " / ".join(">= " + shown(*item) for item in row.targets.items()),
                          "" if reached else "MISSED"), flush=True)
        results.append({"name": row.name, "options": row.options, "figures": found, "targets": row.targets,
                        "reached": reached, "libtorch": row.libtorch, "nncf": row.nncf})
    output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
