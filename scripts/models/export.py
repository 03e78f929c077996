#!/usr/bin/env python3
"""Exports real models and data for them, as `make models` does (through export.sh, which sets up the packages).

    export.py [NAME ...] [--out models] [--force] [--list]

Without names it exports everything. What is already there is skipped; docs/models.md says what each file is.
"""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Target:
    """One thing that can be exported."""

    name: str
    files: tuple[str, ...]
    """What it writes, relative to the output folder."""
    write: Callable[[Path], None]
    """Writes all of `files` into the folder that it is given."""
    needs: tuple[str, ...] = ()
    """Targets whose files `write` reads."""


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """An uncompressed .npz: normalised photographs hardly compress, and readers can map the file."""
    np.savez(path, **arrays)


def load_array(path: Path, name: str) -> np.ndarray:
    with np.load(path) as arrays:
        return arrays[name]


def write_images(folder: Path) -> None:
    import photographs

    calibration, evaluation = photographs.crops()
    save_arrays(folder / "images_calibration.npz", x=photographs.imagenet_normalised(calibration))
    save_arrays(folder / "images_evaluation.npz", x=photographs.imagenet_normalised(evaluation))


def write_lite_images(folder: Path) -> None:
    import photographs

    calibration, evaluation = photographs.crops()
    save_arrays(folder / "lite_images_calibration.npz", x=photographs.lite_normalised(calibration))
    save_arrays(folder / "lite_images_evaluation.npz", x=photographs.lite_normalised(evaluation))


def write_warmed_up(name: str, source: Path) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        import vision

        images = load_array(source / "images_calibration.npz", "x")
        vision.warmed_up(name, images).save(str(folder / f"{name}.pt"))

    return write


def write_efficientnet_lite0(source: Path) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        import vision

        images = load_array(source / "lite_images_calibration.npz", "x")
        vision.efficientnet_lite0(images).save(str(folder / "efficientnet_lite0.pt"))

    return write


def write_minilm(folder: Path) -> None:
    import minilm

    calibration, evaluation = minilm.token_arrays()
    minilm.traced(calibration).save(str(folder / "minilm_l6.pt"))
    save_arrays(folder / "sentences_calibration.npz", **calibration)
    save_arrays(folder / "sentences_evaluation.npz", **evaluation)


def write_silero(folder: Path) -> None:
    import speech

    shutil.copyfile(speech.silero_file(), folder / "silero_vad.jit")
    calibration, evaluation = speech.windows()
    rate = np.array(speech.RATE, dtype=np.int64)
    save_arrays(folder / "speech_calibration.npz", x=calibration, sr=rate)
    save_arrays(folder / "speech_evaluation.npz", x=evaluation, sr=rate)


def targets(out: Path) -> list[Target]:
    """Everything, in the order of writing: what another one needs stands before it."""
    return [
        Target("images", ("images_calibration.npz", "images_evaluation.npz"), write_images),
        Target("resnet18", ("resnet18.pt",), write_warmed_up("resnet18", out), ("images",)),
        Target("resnet50", ("resnet50.pt",), write_warmed_up("resnet50", out), ("images",)),
        Target("mobilenet_v2", ("mobilenet_v2.pt",), write_warmed_up("mobilenet_v2", out), ("images",)),
        Target("lite_images", ("lite_images_calibration.npz", "lite_images_evaluation.npz"), write_lite_images),
        Target("efficientnet_lite0", ("efficientnet_lite0.pt",), write_efficientnet_lite0(out), ("lite_images",)),
        Target("minilm_l6", ("minilm_l6.pt", "sentences_calibration.npz", "sentences_evaluation.npz"), write_minilm),
        Target("silero_vad", ("silero_vad.jit", "speech_calibration.npz", "speech_evaluation.npz"), write_silero),
    ]


def chosen(every: list[Target], names: list[str]) -> list[Target]:
    """The named targets and what they need, in writing order; all of them where no name is given."""
    by_name = {target.name: target for target in every}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise SystemExit(f"export.py: no model is called {', '.join(unknown)}; there are: {', '.join(by_name)}")
    wanted = set(names) if names else set(by_name)
    for target in reversed(every):
        if target.name in wanted:
            wanted.update(target.needs)
    return [target for target in every if target.name in wanted]


def export(target: Target, out: Path) -> None:
    """Writes into a folder beside the result and renames file by file, so an interrupted run leaves no partial file."""
    staging = out / f".{target.name}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        target.write(staging)
        for name in target.files:
            os.replace(staging / name, out / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Exports real TorchScript models and data for them.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to export (default: everything)")
    parser.add_argument("--out", type=Path, default=Path("models"), help="folder to write to (default: models)")
    parser.add_argument("--force", action="store_true", help="write what is already there again")
    parser.add_argument("--list", action="store_true", help="list the names and their files, and stop")
    arguments = parser.parse_args()
    every = targets(arguments.out)
    if arguments.list:
        for target in every:
            print(f"{target.name:20}{' '.join(target.files)}")
        return 0

    arguments.out.mkdir(parents=True, exist_ok=True)
    selection = chosen(every, arguments.names)
    failures = 0
    for number, target in enumerate(selection, start=1):
        print(f"[{number}/{len(selection)}] {target.name}: ", end="", flush=True)
        if not arguments.force and all((arguments.out / name).exists() for name in target.files):
            print("already there")
            continue
        start = time.monotonic()
        try:
            export(target, arguments.out)
        except Exception as error:  # one model's failure must not cost the others
            failures += 1
            print(f"failed: {type(error).__name__}: {error}")
            continue
        sizes = ", ".join(f"{name} {(arguments.out / name).stat().st_size / 1e6:.1f} MB" for name in target.files)
        print(f"{sizes} ({time.monotonic() - start:.0f} s)")
    if failures:
        print(f"{failures} of {len(selection)} failed; run again with their names to retry", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
