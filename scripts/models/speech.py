"""The Silero voice activity detector and speech for it.

The speech is the 27 short recordings in nine languages that pytest-audioeval carries (MIT, 16 kHz mono), with pauses of
faint noise between them, because a detector of speech has to see its absence too.
"""

import warnings
from pathlib import Path

import numpy as np
from scipy.io import wavfile

import photographs

RATE = 16000
# The window that the model takes at 16 kHz.
WINDOW = 512
# Every fourth recording is for calibration.
CALIBRATION_STEP = 4
PAUSE_SECONDS = 0.5
NOISE_LEVEL = 1e-3
SEED = 16


def silero_file() -> Path:
    """The TorchScript file in the wheel."""
    return photographs.package_folder("silero_vad") / "data" / "silero_vad.jit"


def windows() -> tuple[np.ndarray, np.ndarray]:
    """Calibration and evaluation speech of different recordings: f32, (windows, 512), in the order of time.

    The model carries its state from one call to the next, so these are meant for a batch size of 1.
    """
    files = sorted((photographs.package_folder("pytest_audioeval") / "samples" / "audio").rglob("*.wav"))
    if not files:
        raise FileNotFoundError("pytest-audioeval holds no .wav file; is its version the pinned one?")
    calibration = files[::CALIBRATION_STEP]
    evaluation = [path for path in files if path not in calibration]
    generator = np.random.default_rng(SEED)
    return _stream(calibration, generator), _stream(evaluation, generator)


def _stream(files: list[Path], generator: np.random.Generator) -> np.ndarray:
    pieces = []
    for path in files:
        with warnings.catch_warnings():
            # The files carry a chunk of text that SciPy announces it will skip.
            warnings.simplefilter("ignore", wavfile.WavFileWarning)
            rate, samples = wavfile.read(path)
        if rate != RATE or samples.ndim != 1 or samples.dtype != np.float32:
            raise ValueError(f"{path.name} is not mono f32 at {RATE} Hz")
        pieces += [samples, np.zeros(int(RATE * PAUSE_SECONDS), dtype=np.float32)]
    stream = np.concatenate(pieces)
    stream = stream + generator.normal(0.0, NOISE_LEVEL, len(stream)).astype(np.float32)
    return stream[: len(stream) // WINDOW * WINDOW].reshape(-1, WINDOW)
