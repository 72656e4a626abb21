"""Reads the archives of CIFAR-10 and CIFAR-100 without unpacking them."""

import os
import tarfile
import zlib
from collections.abc import Iterator

import numpy as np

from linseed.trainer.data.decode import one_line
from linseed.trainer.errors import DataError

_LARGEST_MEMBER = 2**28  # bytes; CIFAR-100's train.bin has 154 million


def read(path: os.PathLike, names: list[str]) -> dict[str, bytes]:
    """The contents of the regular files `names` of a .tar.gz; nothing is written to disk.

    Raises DataError for a damaged archive, a missing file, and one that would fill the memory.
    """
    files = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if member.isreg() and member.name in names:
                    if member.size > _LARGEST_MEMBER:
                        raise tarfile.ReadError(f"{member.name} claims {member.size} bytes")
                    files[member.name] = archive.extractfile(member).read()
    except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
        raise DataError(
            f"{path} is damaged ({one_line(error)}); delete it, and download the official archive"
        ) from error
    missing = sorted(set(names) - files.keys())
    if missing:
        raise DataError(f"{path} holds no {missing[0]}; delete it, and download the official archive")
    return files


def records(content: bytes, *, num_labels: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The records of a CIFAR .bin file: labels uint8 [num_labels], image uint8 [32, 32, 3].

    A record is the label bytes, then the red, the green and the blue plane.
    """
    size = num_labels + 3 * 32 * 32
    if len(content) % size:
        raise DataError(f"a file of {len(content)} bytes does not hold whole CIFAR records of {size} bytes")
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    for record in records:
        planes = record[num_labels:].reshape(3, 32, 32)
        yield record[:num_labels], np.ascontiguousarray(planes.transpose(1, 2, 0))
