"""Checkpointer: exact resumption, other meshes, crashes, damage. See also crash.py."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jnn as nn
import jnn.functional as F
from jnn.io import Checkpointer, CheckpointError

from . import crash

X = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
Y = np.arange(8) % 2


def run(seed=0):
    nn.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    optimizer = nn.optim.Optimizer(model, optax.adamw(optax.linear_schedule(1e-2, 1e-3, 10)))
    return model, optimizer, nn.train_step(lambda model, x, y: F.cross_entropy(model(x), y), optimizer)


def weights(model):
    return {name: np.asarray(value).tobytes() for name, value in model.state_dict().items()}


def test_a_resumed_run_ends_as_one_left_alone(tmp_path):
    model, optimizer, step = run()
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        assert checkpointer.latest is None
        for i in range(1, 7):
            step(X, Y)
            checkpointer.save(i, {"model": model, "optimizer": optimizer, "epoch": i, "name": "é"})
        checkpointer.wait()
        assert checkpointer.steps == [5, 6]
    for _ in range(3):
        step(X, Y)
    other, optimizer, step = run(seed=1)
    state = {"model": other, "optimizer": optimizer, "epoch": 0, "name": ""}
    with Checkpointer(tmp_path) as checkpointer:
        restored = checkpointer.restore(state)
        assert restored.step == 6
        assert restored.state == {"model": other, "optimizer": optimizer, "epoch": 6, "name": "é"}
        for _ in range(3):
            step(X, Y)
        assert weights(other) == weights(model)
        assert checkpointer.restore(state, step=5).state["epoch"] == 5
        with pytest.raises(ValueError, match="Checkpointer: step must come after the last one saved, got step=6, last=6"):
            checkpointer.save(6, state)
        with pytest.raises(CheckpointError, match=r"Checkpointer: there is no such checkpoint, got step=4, steps=\(5, 6\)"):
            checkpointer.restore(state, step=4)


def test_every_kind_of_leaf(tmp_path):
    mesh = jax.make_mesh((8,), ("x",))
    state = {
        "arrays": [jnp.arange(3.0), np.arange(4, dtype=np.int8), np.zeros((0, 3)), jnp.zeros((2, 0)), jnp.array(True), np.float32(2.5)],
        "half": (jnp.ones(3, jnp.bfloat16), np.ones(2, jnp.float8_e4m3fn), jnp.ones(2, jnp.complex64)),
        "sharded": jax.device_put(jnp.arange(16.0), NamedSharding(mesh, PartitionSpec("x"))),
        "keys": {"one": jax.random.key(3), "many": jax.random.split(jax.random.key(4), 3), "rbg": jax.random.key(5, impl="rbg")},
        "plain": [True, 3, 1 << 70, 2.5, float("inf"), 1 + 2j, "é", b"\xff", None, [], {}],
        "optax": optax.adam(1e-3).init({"w.weight": jnp.ones(2), "a/b": jnp.zeros(1)}),
        "ordered": OrderedDict(b=1, a=2),
        "seven": {7: "a number as name"},
        "nn": nn.Parameter(jnp.ones(2)),
    }
    plain = {"keys", "plain", "seven"}
    like = {
        name: value if name in plain else jax.tree.map(lambda x: (x * 0).astype(x.dtype) if hasattr(x, "dtype") else 0, value)
        for name, value in state.items()
    }
    like["keys"] = {"one": jax.random.key(0), "many": jax.random.split(jax.random.key(0), 3), "rbg": jax.random.key(0, impl="rbg")}
    like["plain"] = [False, 0, 0, 0.0, 0.0, 0j, "", b"", None, [], {}]
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(0, state)
        restored = checkpointer.restore(like).state
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for (path, new), old in zip(jax.tree_util.tree_flatten_with_path(restored)[0], jax.tree.leaves(state), strict=True):
        assert type(new) is type(old), path
        if hasattr(old, "dtype"):
            assert (new.dtype, new.shape) == (old.dtype, old.shape), path
            as_bytes = [
                np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x).tobytes() for x in (new, old)
            ]
            assert as_bytes[0] == as_bytes[1], path
        else:
            assert new == old, path
    assert restored["sharded"].sharding == state["sharded"].sharding


def test_onto_another_mesh(tmp_path):
    state = {"w": jnp.arange(64.0).reshape(8, 8), "b": jnp.arange(8.0)}
    eight, grid = jax.make_mesh((8,), ("x",)), jax.make_mesh((2, 2), ("a", "b"), devices=jax.devices()[:4])
    spread = {
        "w": jax.device_put(state["w"], NamedSharding(eight, PartitionSpec("x"))),
        "b": jax.device_put(state["b"], NamedSharding(eight, PartitionSpec())),
    }
    places = {"w": NamedSharding(grid, PartitionSpec("b", "a")), "b": NamedSharding(grid, PartitionSpec("a"))}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, spread)
        like = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=places[name]) for name, x in state.items()}
        restored = checkpointer.restore(like).state
        whole = checkpointer.restore({name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in state.items()}).state
        on_host = checkpointer.restore({name: np.zeros(x.shape, x.dtype) for name, x in state.items()}).state
    for name, x in state.items():
        assert restored[name].sharding == places[name]
        for found in (restored, whole, on_host):
            np.testing.assert_array_equal(found[name], x)
    assert isinstance(on_host["w"], np.ndarray)


def test_a_sharded_model_and_its_optimizer(tmp_path):
    def make(mesh, spec):
        model = nn.Linear(8, 8)
        for parameter in model.parameters():
            parameter.data = jax.device_put(parameter.detach(), NamedSharding(mesh, spec))
        return {"model": model, "optimizer": nn.optim.Optimizer(model, optax.sgd(0.1, momentum=0.9))}

    first = make(jax.make_mesh((8,), ("x",)), PartitionSpec("x"))
    second = make(jax.make_mesh((4,), ("y",), devices=jax.devices()[:4]), PartitionSpec("y"))
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, first)
        checkpointer.restore(second)
    np.testing.assert_array_equal(second["model"].weight, first["model"].weight)
    assert len(second["model"].weight.detach().sharding.device_set) == 4


@pytest.mark.parametrize("asynchronous", [True, False])
def test_what_is_changed_after_save_does_not_reach_the_disk(tmp_path, asynchronous):
    donate = jax.jit(lambda x: x + 1, donate_argnums=0)
    x, n = jnp.zeros(1 << 20), np.zeros(1 << 20)
    with Checkpointer(tmp_path, keep=None, asynchronous=asynchronous) as checkpointer:
        for i in range(3):
            checkpointer.save(i, {"x": x, "n": n})
            for _ in range(3):
                x = donate(x)
            n += 1
        for i in range(3):
            state = checkpointer.restore({"x": np.zeros(1 << 20), "n": np.zeros(1 << 20)}, step=i).state
            assert (state["x"] == 3 * i).all()
            assert (state["n"] == i).all()


def test_a_form_that_does_not_fit_is_refused_whole(tmp_path):
    model, optimizer, _ = run()
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"model": model, "optimizer": optimizer, "step": 1, "key": jax.random.key(0), "more": jnp.ones(2)})
        before = weights(model)
        like = {"model": nn.Sequential(nn.Linear(3, 5)), "step": np.zeros(()), "key": jnp.zeros(2), "other": 1}
        with pytest.raises(CheckpointError) as caught:
            checkpointer.restore(like)
        for part in (
            "Checkpointer: the checkpoint does not fit: missing ['other']",
            "unexpected ['more']",
            "unexpected ['model']['3.bias']",
            "['model']['0.weight']: float32[4, 3] in the checkpoint, float32[5, 3] here",
            "['step']: a number in the checkpoint, an array here",
            "['key']: a random key in the checkpoint, an array here",
        ):
            assert part in str(caught.value)
        assert weights(model) == before
        assert checkpointer.restore({"step": 0, "more": np.zeros(2)}, strict=False).state["step"] == 1
        with pytest.raises(CheckpointError, match=r"\['f'\].*a state holds arrays|a state holds arrays.*name=.*'f'"):
            checkpointer.save(2, {"f": print})
        with pytest.raises(ValueError, match="Checkpointer: step must be at least 0, got step=-1"):
            checkpointer.save(-1, {})
    with pytest.raises(ValueError, match="Checkpointer: keep must be at least 1, got keep=0"):
        Checkpointer(tmp_path, keep=0)
    with Checkpointer(tmp_path / "empty") as checkpointer, pytest.raises(CheckpointError, match="there is no such checkpoint"):
        checkpointer.restore({})


# In a process of its own: tensorstore's threads write about reads that fail where nothing can catch it.
DAMAGE = """
import os, pathlib, shutil, sys, warnings
import numpy as np
from jnn.io import Checkpointer, CheckpointError

folder = pathlib.Path(sys.argv[1])
like = {"x": np.zeros(30_000), "n": 0}
with Checkpointer(folder) as checkpointer:
    for i in (1, 2):
        checkpointer.save(i, {"x": np.random.default_rng(i).standard_normal(30_000), "n": i})
files = [p for p in (folder / "2").rglob("*") if p.is_file()]
largest = max(files, key=lambda p: p.stat().st_size)
manifest = folder / "2" / "manifest" / "metadata"
assert manifest in files, files
found = set()
for path in files:
    data = path.read_bytes()
    for damage in (None, data[: len(data) // 2], b""):
        path.unlink() if damage is None else path.write_bytes(damage)
        with warnings.catch_warnings(record=True) as caught, Checkpointer(folder) as checkpointer:
            warnings.simplefilter("always")
            step, state = checkpointer.restore(like)
        warned = any("the checkpoint of step 2 cannot be read, the one before is taken" in str(w.message) for w in caught)
        assert warned == (step == 1), (path, step, caught)
        assert state["n"] == step and (state["x"] == np.random.default_rng(step).standard_normal(30_000)).all(), path
        if path in (largest, manifest):
            assert step == 1, path
        found.add(step)
        if step == 1 and path == largest:
            with Checkpointer(folder) as checkpointer:
                try:
                    checkpointer.restore(like, step=2)
                    raise SystemExit("a damaged checkpoint was taken")
                except CheckpointError as error:
                    assert "step 2 cannot be read" in str(error)
        path.write_bytes(data)
assert found == {1, 2}
largest.unlink()
with warnings.catch_warnings(), Checkpointer(folder) as checkpointer:
    warnings.simplefilter("ignore")
    step, state = checkpointer.restore(like)
    checkpointer.save(step + 1, {**state, "n": 20})  # the run goes on
    assert checkpointer.restore(like).state["n"] == 20 and checkpointer.steps == [1, 2]
"""


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path):
    done = subprocess.run([sys.executable, "-c", DAMAGE, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


FULL_DISK = """
import resource, signal, sys
import numpy as np
from jnn.io import Checkpointer, CheckpointError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
state = {"x": np.random.default_rng(0).standard_normal(100_000), "n": 1}
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
with Checkpointer(sys.argv[1]) as checkpointer:
    checkpointer.save(1, state)
    checkpointer.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        checkpointer.save(2, state)
        checkpointer.wait()
        raise SystemExit("nothing was said")
    except CheckpointError as error:
        assert "saving failed, earlier checkpoints are as they were" in str(error), error
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpointer.steps == [1] and checkpointer.restore(state).step == 1
    checkpointer.save(2, state)
    assert (checkpointer.restore({"x": np.zeros(100_000), "n": 0}).state["x"] == state["x"]).all() and checkpointer.latest == 2
"""


def test_a_full_disk_is_reported_and_loses_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_killed_while_training(tmp_path):
    crash.training(1, 0, tmp_path)


def test_killed_while_saving_a_file(tmp_path):
    crash.saving(2, 0, tmp_path)
