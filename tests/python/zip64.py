"""Read what tests/tests/zip64.rs wrote: a large array of zeros, whose header and checksum are read, and a small one
behind it, more than 4 GiB into the file."""
import sys
import zipfile

import numpy as np

LAYER = "blocks.{}.attn.hook_pattern"


def main(path: str) -> None:
    with zipfile.ZipFile(path) as archive:
        large, small = archive.infolist()
        assert large.file_size > 1 << 32 and small.header_offset > 1 << 32, (large, small)
        with archive.open(large) as file:
            np.lib.format.read_magic(file)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            assert (shape, fortran, dtype) == ((1, 1, 33_000, 33_000), False, np.dtype("<f4"))
            # To the end, where the checksum is compared.
            while block := file.read(1 << 24):
                assert not block.strip(b"\0")
    with np.load(path) as arrays:
        assert list(arrays) == [LAYER.format(0), LAYER.format(1)], list(arrays)
        assert arrays[LAYER.format(1)].tolist() == [[[[1.0, 0.0], [0.25, 0.75]]]]


if __name__ == "__main__":
    main(sys.argv[1])
