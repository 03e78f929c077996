"""Photographs for calibrating and comparing the vision models.

The registry offers no photograph data set, so the samples are crops of the pictures that scikit-image and scikit-learn
ship with their wheels. Every picture is cut in two by a vertical line: calibration crops come from the left part only,
evaluation crops from the right part only, so that no pixel is in both.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 224
CALIBRATION_COUNT = 64
EVALUATION_COUNT = 330
# The share of each picture's width that calibration may see.
CALIBRATION_SHARE = 0.35
# A crop takes between these shares of its part's shorter side, then is resized to SIZE x SIZE.
CROP_SHARE = (0.55, 1.0)
SEED = 20240607

# Package, folder in it, file. Colour scenes are named before textures and micrographs, grey pictures last.
PICTURES = [
    ("skimage", "data", "astronaut.png"),
    ("skimage", "data", "chelsea.png"),
    ("skimage", "data", "coffee.png"),
    ("skimage", "data", "rocket.jpg"),
    ("skimage", "data", "motorcycle_left.png"),
    ("sklearn", "datasets/images", "china.jpg"),
    ("sklearn", "datasets/images", "flower.jpg"),
    ("skimage", "data", "hubble_deep_field.jpg"),
    ("skimage", "data", "retina.jpg"),
    ("skimage", "data", "ihc.png"),
    ("skimage", "data", "camera.png"),
    ("skimage", "data", "coins.png"),
    ("skimage", "data", "moon.png"),
    ("skimage", "data", "brick.png"),
    ("skimage", "data", "grass.png"),
    ("skimage", "data", "gravel.png"),
]

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32).reshape(1, 3, 1, 1)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32).reshape(1, 3, 1, 1)


def package_folder(package: str) -> Path:
    """Where an installed package lies, without importing it (its dependencies need not be there)."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"the Python package {package} is not installed; run scripts/models/export.sh")
    return Path(next(iter(spec.submodule_search_locations)))


def crops() -> tuple[np.ndarray, np.ndarray]:
    """Calibration and evaluation crops, u8, (64, 3, 224, 224) and (330, 3, 224, 224). The same on every run."""
    pictures = _pictures()
    generator = np.random.default_rng(SEED)
    calibration = [_crop(pictures[i % len(pictures)], True, generator) for i in range(CALIBRATION_COUNT)]
    evaluation = [_crop(pictures[i % len(pictures)], False, generator) for i in range(EVALUATION_COUNT)]
    return np.stack(calibration), np.stack(evaluation)


@cache
def _pictures() -> list[Image.Image]:
    return [Image.open(package_folder(package) / folder / name).convert("RGB") for package, folder, name in PICTURES]


def training_crops(count: int, size: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`count` random crops of what calibration may see, u8 (count, 3, size, size), and the number of each one's picture."""
    pictures = _pictures()
    numbers = generator.integers(0, len(pictures), count)
    return np.stack([_crop(pictures[number], True, generator, size) for number in numbers]), numbers


def _crop(picture: Image.Image, calibration: bool, generator: np.random.Generator, size: int = SIZE) -> np.ndarray:
    """One square crop of the picture's left (calibration) or right part, mirrored half of the time, as u8 CHW."""
    border = round(picture.width * CALIBRATION_SHARE)
    left, right = (0, border) if calibration else (border, picture.width)
    side = round(min(right - left, picture.height) * generator.uniform(*CROP_SHARE))
    x = int(generator.integers(left, right - side, endpoint=True))
    y = int(generator.integers(0, picture.height - side, endpoint=True))
    # resize() with `box` reads no pixel outside of it, whatever the filter's support.
    resized = picture.resize((size, size), Image.Resampling.BICUBIC, box=(x, y, x + side, y + side))
    pixels = np.asarray(resized).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels[:, :, ::-1] if generator.random() < 0.5 else pixels)


def imagenet_normalised(pixels: np.ndarray) -> np.ndarray:
    """f32 `(pixel / 255 - mean) / std` with the ImageNet statistics, what torchvision's models expect."""
    return (pixels.astype(np.float32) / 255.0 - IMAGENET_MEAN) / IMAGENET_STD


def lite_normalised(pixels: np.ndarray) -> np.ndarray:
    """f32 `(pixel - 127) / 128`, what EfficientNet-Lite was trained on."""
    return (pixels.astype(np.float32) - 127.0) / 128.0
