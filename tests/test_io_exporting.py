"""jnn.io.export: a program with an open batch that runs in a process without jnn."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jnn as nn
import jnn.functional as F
from jnn import io
from jnn.io import CheckpointError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(16, 3)
        self.pool, self.drop = nn.AdaptiveAvgPool2d(2), nn.Dropout(0.5)

    def forward(self, x):
        x = self.pool(F.max_pool2d(F.relu(self.norm(self.conv(x))), 2))
        return {"logits": self.fc(self.drop(x.reshape(x.shape[0], -1)))}


FRESH = """
import sys
sys.modules["jnn"] = sys.modules["torch"] = None
import jax, numpy as np
from jax import export
with open(sys.argv[1], "rb") as file:
    run = export.deserialize(bytearray(file.read())).call
with np.load(sys.argv[2]) as data:
    for name in data:
        if name.startswith("x"):
            np.testing.assert_allclose(run(data[name])["logits"], data["y" + name[1:]], rtol=1e-5, atol=1e-6)
"""


def test_in_a_fresh_process_without_the_source(tmp_path):
    model = Net()
    model(np.random.default_rng(1).standard_normal((16, 1, 8, 8)).astype(np.float32))  # moves the running statistics
    io.export(model, np.zeros((2, 1, 8, 8), np.float32), tmp_path / "net.jax")
    assert model.training
    data, model = {}, model.eval()
    for size in (1, 3, 8):
        x = np.random.default_rng(size).standard_normal((size, 1, 8, 8)).astype(np.float32)
        data |= {f"x{size}": x, f"y{size}": np.asarray(model(x)["logits"])}
    np.savez(tmp_path / "data.npz", **data)
    run = subprocess.run(
        [sys.executable, "-c", FRESH, tmp_path / "net.jax", tmp_path / "data.npz"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    loaded = io.load_exported(tmp_path / "net.jax")
    np.testing.assert_allclose(loaded(data["x3"])["logits"], data["y3"], rtol=1e-5, atol=1e-6)


MODELS = {
    "transformer": (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1), [(5, 8)]),
    "lstm": (lambda: nn.LSTM(3, 4, batch_first=True), [(5, 3)]),
    "attention": (lambda: nn.MultiheadAttention(8, 2, batch_first=True), [(5, 8)] * 3),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_with_an_open_batch(tmp_path, name):
    make, shapes = MODELS[name]
    model = make().eval()
    io.export(model, tuple(jax.ShapeDtypeStruct((2, *shape), jnp.float32) for shape in shapes), tmp_path / "m.jax")
    run = io.load_exported(tmp_path / "m.jax")
    for batch in (1, 3):
        args = [np.random.default_rng(i).standard_normal((batch, *shape)).astype(np.float32) for i, shape in enumerate(shapes)]
        # Compiled with another batch than the one of today, whose sums may be in another order.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), run(*args), model(*args))


def test_other_open_sizes_and_none(tmp_path):
    model = nn.Conv1d(2, 3, 3)
    io.export(model, np.zeros((2, 2, 8), np.float32), tmp_path / "m.jax", shapes="b, 2, length", constraints=["length >= 3"])
    run = io.load_exported(tmp_path / "m.jax")
    for shape in ((1, 2, 5), (3, 2, 9)):
        x = np.ones(shape, np.float32)
        np.testing.assert_allclose(run(x), model(x), rtol=1e-5)
    io.export(nn.Bilinear(2, 2, 3), (np.zeros((4, 2), np.float32),) * 2, tmp_path / "m.jax", shapes=[None, None])
    with pytest.raises(ValueError, match="Shape mismatch|shape"):
        io.load_exported(tmp_path / "m.jax")(*(np.zeros((5, 2), np.float32),) * 2)


class Halves(nn.Module):
    def forward(self, x):
        return x if x.shape[0] > 3 else -x


def test_clear_words(tmp_path):
    path = tmp_path / "m.jax"
    with pytest.raises(
        CheckpointError, match=r"export: Halves computes what depends on an open size; .* shapes, or constraints: .*'b' > '3'"
    ):
        io.export(Halves(), np.zeros((2, 2), np.float32), path)
    with pytest.raises(TypeError, match="export: module must be a Module, got module=function"):
        io.export(lambda x: x, np.zeros(2), path)
    with pytest.raises(ValueError, match="export: there must be a shape for each argument"):
        io.export(nn.Identity(), np.zeros(2), path, shapes=["b", "b"])
    assert not path.exists()
    io.export(nn.Identity(), np.zeros(2, np.float32), path)
    data = path.read_bytes()
    for damaged in (b"", b"PK\x03\x04", data[: len(data) // 2], bytes(100)):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"load_exported: .* is no artifact of jax\.export"):
            io.load_exported(path)
