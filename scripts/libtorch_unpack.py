#!/usr/bin/env python3
"""Unpack from the wheels of libtorch.lock what a C++ or Rust program needs, and list it in MANIFEST.

    libtorch_unpack.py WHEEL_FOLDER TARGET

Headers, libtorch_cpu, libc10 and the libraries these load: 0.5 GB. The wheels hold 1.3 GB; the CUDA half and the
Python packages stay out, because nothing here links or imports them. Only the standard library is used.
"""

import os
import re
import shutil
import sys
import time
import zipfile
from pathlib import Path

# What is kept. Every pattern must match something: a wheel laid out differently is an error, not a broken build later.
KEPT = [
    r"torch/include/.+",
    r"torch/lib/libtorch_cpu\.so",
    r"torch/lib/libc10\.so",
    r"torch/lib/libgomp\.so\.1",
    r"nvidia/cu13/lib/libcudart\.so\.13",
    r"nvidia/cu13/lib/libcupti\.so\.13",
    r"torch-[^/]+\.dist-info/licenses/.+",
    r"nvidia_cuda_runtime-[^/]+\.dist-info/licenses/.+",
    r"nvidia_cuda_cupti-[^/]+\.dist-info/licenses/.+",
]

# torch-sys and others link with -ltorch. The wheel's libtorch.so has no code: it only pulls in libtorch_cpu and the CUDA
# half, which is left out. This linker script stands for the first of the two.
LIBTORCH_SO = "/* GNU ld script: libtorch without its CUDA half. */\nINPUT ( -ltorch_cpu -lc10 )\n"


def unpack(wheel: Path, target: Path) -> set[str]:
    """Unpacks the kept files of one wheel and returns the patterns that matched."""
    matched = set()
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            pattern = next((p for p in KEPT if re.fullmatch(p, info.filename)), None)
            if pattern is None or info.is_dir():
                continue
            matched.add(pattern)
            path = target / info.filename
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as source, open(path, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            # The wheel's own date: a repair then does not make every header newer than what was built from it.
            date = time.mktime((*info.date_time, 0, 0, -1))
            os.utime(path, (date, date))
    return matched


def main() -> None:
    wheels, target = Path(sys.argv[1]), Path(sys.argv[2])
    matched = set()
    for wheel in sorted(wheels.glob("*.whl")):
        matched |= unpack(wheel, target)
        wheel.unlink()
    missing = [p for p in KEPT if p not in matched]
    if missing:
        sys.exit("the wheels hold nothing that matches " + ", ".join(missing))

    # torch-sys compares this file, which libtorch's zip archives have and the wheel has not, with the version it is for.
    version = next(p.name for p in target.glob("torch-*.dist-info")).removeprefix("torch-").removesuffix(".dist-info")
    (target / "torch" / "build-version").write_text(version + "\n")
    (target / "torch" / "lib" / "libtorch.so").write_text(LIBTORCH_SO)

    files = sorted(p for p in target.rglob("*") if p.is_file())
    lines = [f"{p.stat().st_size} {p.relative_to(target)}\n" for p in files]
    (target / "MANIFEST").write_text("".join(lines))
    # The caller renames the folder into place: no file may reach the disk after its name does.
    os.sync()


main()
