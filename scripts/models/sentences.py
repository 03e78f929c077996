"""English sentences for the text model: the prose of scikit-learn's and scikit-image's own documentation.

They are read from the docstrings and the data set descriptions in the installed wheels (both BSD-3-Clause), which are
pinned, so the sentences are the same everywhere. The packages are parsed, not imported.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import photographs

CALIBRATION_COUNT = 128
EVALUATION_COUNT = 512
SEED = 128
WORDS = (6, 40)

# Letters, digits and ordinary punctuation: what is left out is mark-up, formulas and code.
_PROSE = re.compile(r"[A-Z][A-Za-z0-9 ,;:'()\-]+\.")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def calibration_and_evaluation() -> tuple[list[str], list[str]]:
    """128 and 512 different sentences, drawn with a fixed seed."""
    found = sorted({sentence for text in _texts() for sentence in _sentences(text)})
    needed = CALIBRATION_COUNT + EVALUATION_COUNT
    if len(found) < needed:
        raise ValueError(f"only {len(found)} sentences found in scikit-learn and scikit-image, {needed} needed")
    drawn = [found[i] for i in np.random.default_rng(SEED).permutation(len(found))[:needed]]
    return drawn[:CALIBRATION_COUNT], drawn[CALIBRATION_COUNT:]


def _texts() -> Iterator[str]:
    for package in ("sklearn", "skimage"):
        folder = photographs.package_folder(package)
        for path in sorted(folder.rglob("*.rst")):
            yield path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*.py")):
            if "tests" not in path.parts:
                yield from _docstrings(path)


def _docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield text


def _sentences(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in _SENTENCE_END.split(" ".join(paragraph.split())):
            if WORDS[0] <= len(sentence.split()) <= WORDS[1] and _PROSE.fullmatch(sentence):
                yield sentence
