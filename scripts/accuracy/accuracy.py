"""`make accuracy`: quantizes the models of `make models` and prints what each keeps, beside what others keep.

Portable INT8 files are run by stock PyTorch (figures.py), those in native form by `jitquant compare`. Models that are not
there are left out, and said to be.
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

EXAMPLES = Path(__file__).parents[2] / "examples"

# The figures of libtorch and NNCF are not measured here: those of libtorch on the torchvision models are the best of
# scripts/models/reference.py (docs/models.md), and the targets 1.5 dB more.
ROWS = (
    Row("EfficientNet-Lite0", **LITE, options=(), targets={"top1": 0.94, "sqnr_db": 19.0},
        libtorch="46 % / 2.3 dB", nncf="90.0 % / 15.8 dB"),
    Row("EfficientNet-Lite0, native form", **LITE, options=("--form", "native"), targets={"top1": 0.96, "sqnr_db": 19.0},
        libtorch="46 % / 2.3 dB", nncf="90.0 % / 15.8 dB"),
    Row("ResNet-18", "resnet18.pt", **IMAGES, options=(), targets={"sqnr_db": 40.5}, libtorch="39.0 dB"),
    Row("ResNet-50", "resnet50.pt", **IMAGES, options=(), targets={"sqnr_db": 25.1}, libtorch="23.6 dB"),
    Row("MobileNetV2", "mobilenet_v2.pt", **IMAGES, options=(), targets={"sqnr_db": 28.3}, libtorch="26.8 dB"),
    Row("MiniLM-L6, dynamic, no data", "minilm_l6.pt", **SENTENCES, options=("--mode", "dynamic"),
        targets={"cosine": 0.998, "same_nearest": 0.93}, libtorch="0.975 / 73 %", calibration_samples=0),
    Row("MiniLM-L6, dynamic", "minilm_l6.pt", **SENTENCES, options=("--mode", "dynamic"),
        targets={"cosine": 0.998, "same_nearest": 0.93}, libtorch="0.975 / 73 %"),
    Row("MiniLM-L6, static", "minilm_l6.pt", **SENTENCES, options=(),
        targets={"cosine": 0.998, "same_nearest": 0.93}, libtorch="0.864 / 57 %", nncf="0.9973 / 91.4 %"),
    Row("digit classifier of the demo", str(EXAMPLES / "digits" / "digits.pt"), str(EXAMPLES / "digits"), "digits", 1000,
        options=("--labels", "labels"), targets={"accuracy": -0.003}, libtorch="", calibration_samples=500),
    Row("silero_vad, dynamic", "silero_vad.jit", "speech", "stream", 1875, options=("--mode", "dynamic"),
        targets={"probability": -0.02}, libtorch="refused", calibration_samples=0),
)


def files(row: Row, models: Path) -> tuple[Path, Path]:
    """The data for calibration and for evaluation."""
    if row.kind == "digits":
        return Path(row.data) / "calibration.npz", Path(row.data) / "heldout.npz"
    return models / f"{row.data}_calibration.npz", models / f"{row.data}_evaluation.npz"


def measure(row: Row, jitquant: str, models: Path, work: Path, references: dict) -> dict[str, float]:
    int8 = work / "int8.pt"
    calibration, evaluation = files(row, models)
    command = [jitquant, "quantize", str(models / row.model), "-o", str(int8), *row.options]
    if row.calibration_samples:
        command += ["--calibrate", str(calibration)]
        command += ["--samples", str(row.calibration_samples), "--batch-size", "32"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    if "native" in row.options:
        command = [jitquant, "compare", str(models / row.model), str(int8), "--data", str(evaluation), "--json"]
        compared = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        return {"sqnr_db": compared["sqnr_db"], "top1": compared["top1_agreement"]}
    batch = {"sentences": 50, "stream": 1, "digits": 100}.get(row.kind, 33)
    arrays = figures.load_arrays(evaluation, row.samples)
    labels = arrays.pop() if row.kind == "digits" else None
    if row.model not in references:
        references[row.model] = figures.outputs(models / row.model, arrays, batch)
    return figures.compare(references[row.model], figures.outputs(int8, arrays, batch), row.kind, labels)


def shown(name: str, value: float) -> str:
    """Changes of the accuracy in points, those of a probability as they are."""
    if name in ("top1", "same_nearest", "accuracy"):
        return f"{value:.1%}"
    return {"cosine": f"{value:.5f}", "probability": f"{value:.4f}"}.get(name, f"{value:.1f} dB")


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
