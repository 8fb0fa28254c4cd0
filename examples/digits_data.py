"""Handwritten digits: the set inside scikit-learn, or MNIST's IDX files from a folder."""

from __future__ import annotations

import gzip
import math
import pathlib
import struct
import zlib
from typing import NamedTuple

import numpy as np


class Digits(NamedTuple):
    """Images (N, 1, H, W) in [0, 1] as float32 and labels (N,) as int32, for training and for testing."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


class DataError(ValueError):
    """A data file that is missing or is not what it should be."""


def sklearn_digits() -> Digits:
    """1,797 scans of 8 x 8 pixels (UCI), a fifth of each digit held out."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    train_x, test_x, train_y, test_y = train_test_split(images, labels.astype(np.int32), test_size=0.2, stratify=labels, random_state=0)
    return Digits(train_x, train_y, test_x, test_y)


def mnist(folder: str | pathlib.Path) -> Digits:
    """MNIST from its four IDX files, gzipped or not."""

    def load(kind: str) -> tuple[np.ndarray, np.ndarray]:
        images = read_idx(_find(folder, f"{kind}-images-idx3-ubyte"), 3)
        labels = read_idx(_find(folder, f"{kind}-labels-idx1-ubyte"), 1)
        if len(images) != len(labels) or not len(images):
            raise DataError(f"{folder}: {kind} has {len(images)} images and {len(labels)} labels")
        if labels.max() > 9:
            raise DataError(f"{folder}: {kind} has the label {labels.max()}, digits go from 0 to 9")
        return (images[:, None] / np.float32(255)).astype(np.float32), labels.astype(np.int32)

    train, test = load("train"), load("t10k")
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(f"{folder}: images of {train[0].shape[2:]} to train on, of {test[0].shape[2:]} to test on")
    return Digits(*train, *test)


def _find(folder: str | pathlib.Path, name: str) -> pathlib.Path:
    # Some copies of MNIST spell the last separator as a dot.
    names = [spelling + end for spelling in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]
    for candidate in names:
        path = pathlib.Path(folder, candidate)
        if path.is_file():
            return path
    raise DataError(f"{folder}: no file {' or '.join(names)}")


def read_idx(path: str | pathlib.Path, ndim: int) -> np.ndarray:
    """An IDX file of unsigned bytes with ``ndim`` dimensions.

    Raises:
        DataError: the file is not IDX, has other dimensions, is truncated, or has bytes left over.
    """
    raw = pathlib.Path(path).read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{path}: the gzip stream is damaged or cut short ({error})") from None
    header = 4 + 4 * ndim
    if raw[:4] != bytes([0, 0, 0x08, ndim]):
        raise DataError(f"{path}: not an IDX file of bytes with {ndim} dimensions, it starts with {raw[:4].hex() or 'nothing'}")
    if len(raw) < header:
        raise DataError(f"{path}: cut short inside its header, {len(raw)} of {header} bytes")
    shape = struct.unpack(f">{ndim}I", raw[4:header])
    if len(raw) - header != math.prod(shape):
        raise DataError(f"{path}: {len(raw) - header} bytes of data where {' x '.join(map(str, shape))} = {math.prod(shape)} are due")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)
