"""The examples, run as a user runs them."""

from __future__ import annotations

import gzip
import os
import pathlib
import re
import struct
import subprocess
import sys

import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import digits_data  # noqa: E402 - lies beside the examples


def run(*arguments, check=True):
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(command, capture_output=True, text=True, check=check, env=env, cwd=EXAMPLES)


@pytest.mark.parametrize("style", ["functional", "module", "pmap"])
def test_digits_are_learnt_in_every_style(style, tmp_path):
    devices = ["--devices", 2] if style == "pmap" else []
    shown = run("digits.py", "--style", style, "--out", tmp_path, *devices).stdout
    found = re.search(r"test accuracy ([\d.]+) %", shown)
    assert found
    assert float(found[1]) >= 97
    for name in ("learning_curve.png", "confusion_matrix.png", "weights.npz"):
        assert (tmp_path / name).stat().st_size > 1000


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(folder, squeeze=True, **changed):
    rng = np.random.default_rng(0)
    for kind, n in (("train", 40), ("t10k", 20)):
        labels = np.arange(n) % 10
        images = rng.integers(0, 256, (n, 28, 28))
        for name, array in ((f"{kind}-images-idx3-ubyte", images), (f"{kind}-labels-idx1-ubyte", labels)):
            raw = changed.get(name.replace("-", "_"), lambda raw: raw)(idx(array))
            (folder / (name + ".gz" * squeeze)).write_bytes(gzip.compress(raw) if squeeze else raw)


@pytest.mark.parametrize("squeeze", [True, False])
def test_mnist_files_are_read(tmp_path, squeeze):
    write_mnist(tmp_path, squeeze)
    data = digits_data.mnist(tmp_path)
    assert data.train_images.shape == (40, 1, 28, 28)
    assert data.train_images.dtype == np.float32
    assert 0 <= data.test_images.min() <= data.test_images.max() <= 1
    assert data.test_labels.tolist() == [i % 10 for i in range(20)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw[:-1], r"31359 bytes of data where 40 x 28 x 28 = 31360 are due"),
        (lambda raw: raw + b"x", r"31361 bytes of data"),
        (lambda raw: raw[:9], r"cut short inside its header, 9 of 16 bytes"),
        (lambda raw: b"", r"it starts with nothing"),
        (lambda raw: b"PNG?" + raw, r"not an IDX file of bytes with 3 dimensions, it starts with 504e473f"),
        (lambda raw: idx(np.zeros((39, 28, 28))), r"train has 39 images and 40 labels"),
        (lambda raw: raw[:4] + struct.pack(">3I", *[2**32 - 1] * 3) + raw[16:], r"bytes of data where"),
    ],
)
def test_bad_mnist_files_are_refused_in_words(tmp_path, change, words):
    write_mnist(tmp_path, squeeze=False, train_images_idx3_ubyte=change)
    with pytest.raises(digits_data.DataError, match=words):
        digits_data.mnist(tmp_path)


def test_a_cut_gzip_stream_and_missing_files_end_the_example_with_one_line(tmp_path):
    write_mnist(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    ended = run("digits.py", "--data", tmp_path, check=False)
    assert ended.returncode == 2
    assert "damaged or cut short" in ended.stderr
    assert "Traceback" not in ended.stderr
    path.unlink()
    with pytest.raises(digits_data.DataError, match="no file t10k-images-idx3-ubyte or"):
        digits_data.mnist(tmp_path)


def test_mnist_trains(tmp_path):
    write_mnist(tmp_path)
    assert "test accuracy" in run("digits.py", "--data", tmp_path, "--epochs", 1, "--batch-size", 16, "--out", tmp_path / "out").stdout
