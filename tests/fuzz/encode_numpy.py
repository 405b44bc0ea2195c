"""Reads with numpy what the fuzzer leaves in a folder, while it runs: FOLDER/x.npz holds FOLDER/x.raw's float32 values."""

import pathlib
import sys
import time

import numpy as np


def check(npz: pathlib.Path) -> None:
    raw = npz.with_suffix(".raw")
    with np.load(npz) as arrays:
        [name] = arrays
        found = arrays[name]
    assert name == "blocks.0.attn.hook_pattern", name
    values = np.fromfile(raw, "<f4")
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(found.dtype).reshape(found.shape)
    if found.dtype == np.float32:
        same = found.tobytes() == expected.tobytes()
    else:
        # Which NaN a NaN becomes is up to the converter.
        nan = np.isnan(found)
        same = (nan == np.isnan(expected)).all() and (found.view("<u2") == expected.view("<u2"))[~nan].all()
    assert same, f"numpy reads other values from {npz.stem} (its seed comes first)"
    npz.unlink()
    raw.unlink()


def main(folder: pathlib.Path) -> None:
    count = 0
    while True:
        over = (folder / "done").exists()
        for npz in folder.glob("*.npz"):
            check(npz)
            count += 1
        if over:
            break
        time.sleep(0.1)
    print(f"numpy read {count} of the files")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
