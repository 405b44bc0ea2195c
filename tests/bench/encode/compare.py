"""How fast and how small encoders write the arrays of npz files: compare.py WORKER FILE.npz...

Run it through `run`, which makes what it needs. Each encoder gets the same arrays on one core, in turn, for at least
two rounds and half a second; its fastest round counts. numpy is `savez_compressed` into memory; the libraries get the
bytes of each array as one raw deflate stream and no checksum, which is in their favour; `worker bench encode` includes
checksums. Theirs is processor time and the worker's wall time, so other load on the machine does not count against
them; but a machine that is slow for a while does: where the speed target is missed, numpy and the worker are measured
again, both, and the fastest of each counts. Prints a Markdown table: speed in uncompressed MB/s and as a multiple of
numpy's, ratio, and size beside numpy's. Exits with 1 where the worker misses its targets (`speed_target`, and numpy's
size).
"""

import io
import json
import pathlib
import subprocess
import sys
import time
import zipfile
import zlib

import deflate
import numpy as np
from isal import isal_zlib
from zlib_ng import zlib_ng

from patterns import REPEATING

ROUNDS = 2
# Measurements of numpy and the worker where the target is missed.
TRIES = 3
# Small arrays get more rounds: as the worker's do.
SECONDS = 0.5
# Of the whole size: a byte or two are none the larger.
SIZE_TOLERANCE = 1e-4


def speed_target(kind: str, dtype: np.dtype) -> float:
    """How many times numpy's speed: where data repeat, most are worth a search, and half as many bits repeat more."""
    return 25 if kind not in REPEATING and dtype == np.float32 else 1


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array)
    return out.getvalue()


def stream(make) -> "callable":
    """An encoder of arrays by a library with zlib's interface."""

    def encode(arrays: dict[str, bytes]) -> int:
        size = 0
        for data in arrays.values():
            compressor = make()
            size += len(compressor.compress(data)) + len(compressor.flush())
        return size

    return encode


ENCODERS = {
    "zlib 6": stream(lambda: zlib.compressobj(6, zlib.DEFLATED, -15)),
    "zlib-ng 1": stream(lambda: zlib_ng.compressobj(1, zlib_ng.DEFLATED, -15)),
    "zlib-ng, runs only": stream(lambda: zlib_ng.compressobj(1, zlib_ng.DEFLATED, -15, 8, zlib_ng.Z_RLE)),
    "libdeflate 1": lambda arrays: sum(len(deflate.deflate_compress(data, 1)) for data in arrays.values()),
    "ISA-L 1": stream(lambda: isal_zlib.compressobj(1, isal_zlib.DEFLATED, -15)),
}


def fastest(encode, arrays) -> tuple[float, int]:
    best, total, rounds = float("inf"), 0, 0
    while rounds < ROUNDS or total < SECONDS:
        start = time.process_time()
        size = encode(arrays)
        taken = time.process_time() - start
        best, total, rounds = min(best, taken), total + taken, rounds + 1
    return best, size


def numpys(arrays: dict[str, np.ndarray]) -> int:
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    with zipfile.ZipFile(out) as archive:
        return sum(entry.compress_size for entry in archive.infolist())


def worker_figures(worker: str, file: str) -> tuple[dict, dict]:
    """Of its encoder, and of zlib's level 6 by its library."""
    report = json.loads(subprocess.check_output([worker, "bench", "encode", "--json", file]))
    return report, report["zlib6"]


def main(worker: str, files: list[str]) -> int:
    missed = []
    print("| data | encoder | MB/s | x numpy | ratio | size beside numpy's |\n|---|---|--:|--:|--:|--:|")
    for file in files:
        with np.load(file) as archive:
            arrays = {name: archive[name] for name in archive}
        raw = {name: npy(array) for name, array in arrays.items()}
        total = sum(map(len, raw.values()))
        data = pathlib.Path(file).stem
        target = speed_target(data.rsplit("-", 1)[0], next(iter(arrays.values())).dtype)
        seconds, numpy_size = fastest(numpys, arrays)
        ours, zlib6 = worker_figures(worker, file)
        for _ in range(TRIES - 1):
            if ours["mb_per_s_per_core"] >= target * total / seconds / 1e6:
                break
            seconds = min(seconds, fastest(numpys, arrays)[0])
            ours = max(ours, worker_figures(worker, file)[0], key=lambda figures: figures["mb_per_s_per_core"])
        numpy_speed = total / seconds / 1e6
        rows = [("numpy savez_compressed", numpy_speed, numpy_size / total)]
        for name, encode in ENCODERS.items():
            seconds, size = fastest(encode, raw)
            rows.append((name, total / seconds / 1e6, size / total))
        for name, figures in (("lenspool zlib:6", zlib6), ("**lenspool causal**", ours)):
            rows.append((name, figures["mb_per_s_per_core"], figures["ratio"]))
        for name, speed, ratio in rows:
            beside = ratio / (numpy_size / total) - 1
            print(f"| {data} | {name} | {speed:,.0f} | {speed / numpy_speed:.1f} | {ratio:.4f} | {beside:+.2%} |", flush=True)
        speed, ratio = rows[-1][1:]
        if speed < target * numpy_speed:
            missed.append(f"{data}: {speed / numpy_speed:.1f} times numpy's speed, not {target}")
        if ratio > numpy_size / total * (1 + SIZE_TOLERANCE):
            missed.append(f"{data}: larger than numpy's by {ratio / (numpy_size / total) - 1:.2%}")
    print(*missed, sep="\n", file=sys.stderr)
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
