"""Writes the small NumPy files beside this script, which the tests of the data reader read.

Element i of the row-major order is i - 5 (booleans: i % 3 == 0).
"""
import numpy as np
from numpy.lib import format as npy_format


def counting(*shape):
    return np.arange(np.prod(shape)).reshape(shape) - 5


np.save("f32.npy", counting(3, 4).astype("<f4"))
np.save("f32_fortran.npy", np.asfortranarray(counting(3, 2, 4).astype("<f4")))
np.save("f32_big_endian.npy", counting(3, 4).astype(">f4"))
np.save("f64_big_endian_fortran.npy", np.asfortranarray(counting(3, 4).astype(">f8")))
np.save("f16.npy", counting(3, 4).astype("<f2"))
np.save("i16_big_endian.npy", counting(12).astype(">i2"))
np.save("bool.npy", (np.arange(12) % 3 == 0).reshape(3, 4))
with open("i64_version2.npy", "wb") as file:
    npy_format.write_array(file, counting(3, 4).astype("<i8"), version=(2, 0))

arrays = {
    "x": np.asfortranarray(counting(3, 2, 4).astype("<f4")),
    "mask": (np.arange(12) % 3 == 0).reshape(3, 4),
}
np.savez("stored.npz", counting(3).astype("<i8"), **arrays)
np.savez_compressed("compressed.npz", counting(3).astype("<i8"), **arrays)
