"""The idx format of the original files of MNIST and its relatives."""

import gzip
import hashlib
import math
from pathlib import Path

import numpy as np


def read_idx(path: Path) -> np.ndarray:
    """Returns the array of an idx file that is compressed with gzip.

    Args:
      path: the file.

    Returns:
      uint8, with the dimensions that the file declares.

    Raises:
      ValueError: if it is no such file, its numbers are not bytes, or its length and
        its dimensions disagree.
    """
    try:
        data = gzip.decompress(Path(path).read_bytes())
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} is not a gzip file: {error}") from error
    if len(data) < 4 or data[:2] != b"\0\0" or len(data) < 4 + 4 * data[3]:
        raise ValueError(f"{path} does not begin as an idx file does.")
    if data[2] != 0x08:
        raise ValueError(
            f"{path} must hold unsigned bytes, idx type 0x08; found {data[2]:#04x}."
        )
    shape = np.frombuffer(data, ">u4", count=data[3], offset=4).tolist()
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if len(values) != math.prod(shape):
        raise ValueError(
            f"{path} declares the shape {shape}, which is {math.prod(shape)} bytes; "
            f"found {len(values)}."
        )
    return values.reshape(shape)


def hash_of_content(path: Path) -> str | None:
    """Returns the SHA-256 of what a gzip file holds, None if it is no gzip file.

    Args:
      path: the file.
    """
    try:
        return hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest()
    except (OSError, EOFError):
        return None
