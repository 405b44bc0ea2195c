"""The largest difference between two runs' patterns, over every prompt and layer; with numpy where there is one."""

import array
import ast
import math
import pathlib
import struct
import zipfile


def read(path: pathlib.Path) -> dict:
    """Every array of an npz file as float32, without its shape."""
    try:
        import numpy

        with numpy.load(path) as arrays:
            return {name: numpy.ascontiguousarray(arrays[name], dtype="<f4").ravel() for name in arrays.files}
    except ImportError:
        with zipfile.ZipFile(path) as archive:
            return {name[: -len(".npy")]: npy(archive.read(name)) for name in archive.namelist()}


def npy(data: bytes) -> array.array:
    """The values of a float32 array in npy format, version 1 or 2."""
    size, begin = (struct.unpack("<H", data[8:10])[0], 10) if data[6] == 1 else (struct.unpack("<I", data[8:12])[0], 12)
    header = ast.literal_eval(data[begin : begin + size].decode("latin1"))
    assert header["descr"] == "<f4", header
    values = array.array("f")
    values.frombytes(data[begin + size :])
    return values


def difference(a, b) -> float:
    assert len(a) == len(b), "arrays of different sizes"
    if isinstance(a, array.array):
        # max passes over NaN; a sum does not.
        worst = max((abs(x - y) for x, y in zip(a, b)), default=0.0) + 0.0 * (sum(a) + sum(b))
    else:
        worst = float(abs(a - b).max()) if len(a) else 0.0
    assert not math.isnan(worst), "a pattern is no number"
    return worst


def largest_difference(left: pathlib.Path, right: pathlib.Path) -> tuple:
    """Over every prompt that both data directories have of gpt2: how many there are, and the largest difference."""
    count, worst = 0, 0.0
    for file in sorted(left.glob("gpt2/prompts/*/activations.npz")):
        other = right / file.relative_to(left)
        if not other.exists():
            continue
        a, b = read(file), read(other)
        assert sorted(a) == sorted(b), f"{file}: other arrays than {other}"
        worst = max([worst, *(difference(a[name], b[name]) for name in a)])
        count += 1
    assert count > 0, f"no prompt is in both {left} and {right}"
    return count, worst
