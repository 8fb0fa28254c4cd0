"""``Checkpointer``: the state of a training run, saved while it runs and found again after a crash."""

from __future__ import annotations

import base64
import os
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core import checks, rng
from ..module.module import Module
from ..optim import Optimizer
from .errors import CheckpointError, require

_ARRAYS, _MANIFEST = "arrays", "manifest"
_VERSION = 1


class Restored(NamedTuple):
    """What ``Checkpointer.restore`` returns."""

    step: int
    state: Any


class Checkpointer:
    """Saves pytrees by step into a directory and keeps the latest, by orbax-checkpoint (the extra ``jnn[io]``).

    A state is a pytree of arrays, random keys, numbers, strings and bytes, in which Modules and Optimizers may stand as
    they are:

        checkpointer = jnn.io.Checkpointer("run", keep=3)
        state = {"model": model, "optimizer": optimizer, "key": key, "epoch": 0}
        if checkpointer.latest is not None:
            step, state = checkpointer.restore(state)  # writes into model and optimizer, too
        checkpointer.save(step, state)

    A checkpoint gets its name when all of it is on the disk; one that a crash left half written is never taken, and is
    removed when the directory is next opened. One process at a time may write into a directory.

    Args:
        directory: where; made if it is not there.
        keep: how many checkpoints are kept; all when None.
        asynchronous: write in the background. The arrays may be changed and donated as soon as ``save`` returns.

    Raises:
        ImportError: orbax-checkpoint is not installed.
    """

    def __init__(self, directory: str | os.PathLike[str], keep: int | None = 3, *, asynchronous: bool = True) -> None:
        import orbax.checkpoint as ocp  # an extra, slow to import

        if keep is not None:
            keep = checks.integer(self, "keep", keep, 1)
        self._ocp = ocp
        self._damaged: set[int] = set()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=asynchronous, cleanup_tmp_directories=True, create=True
        )
        handlers = {_ARRAYS: ocp.PyTreeCheckpointHandler(), _MANIFEST: ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(os.path.abspath(os.fspath(directory)), options=options, item_handlers=handlers)

    @property
    def steps(self) -> list[int]:
        """The steps that can be restored, in order."""
        return sorted({*self._manager.all_steps()} - self._damaged)

    @property
    def latest(self) -> int | None:
        """The last of them."""
        return max(self.steps, default=None)

    def save(self, step: int, state: Any) -> None:
        """Save ``state`` as that of ``step``; with ``asynchronous``, errors of the writing come with the next call.

        The position of jnn's own random generator is saved with it.

        Raises:
            ValueError: ``step`` does not come after the last one.
            CheckpointError: the state holds what cannot be saved, or writing failed.
        """
        step = checks.integer(self, "step", step, 0)
        self.wait()
        last = self.latest
        checks.require(last is None or step > last, self, "step must come after the last one saved", step=step, last=last)
        leaves, _ = _flatten(state)
        manifest = {
            "version": _VERSION,
            "generator": [*_generator_position()],
            "leaves": {name: _describe(name, leaf) for name, leaf in leaves.items()},
        }
        # A numpy array may be changed while it is written; jax's never change, and orbax holds on to donated ones.
        arrays = {
            name: np.array(leaf) if isinstance(leaf, (np.ndarray, np.generic)) else _key_data(leaf)
            for name, leaf in leaves.items()
            if _stored(manifest["leaves"][name])
        }
        args = self._ocp.args.Composite(**{_ARRAYS: self._ocp.args.PyTreeSave(arrays), _MANIFEST: self._ocp.args.JsonSave(manifest)})
        for damaged in self._damaged & {*self._manager.all_steps()}:
            self._manager.delete(damaged)
        self._damaged.clear()
        self._run(lambda: self._manager.save(step, args=args, force=True))

    def restore(self, like: Any, step: int | None = None, *, strict: bool = True) -> Restored:
        """``(step, state)`` of a checkpoint.

        Args:
            like: the form of the state: a pytree with the same names, whose arrays, or ``jax.ShapeDtypeStruct`` with
                shardings, say on which devices and mesh each array is to be. Modules and Optimizers in it are loaded into,
                and jnn's random generator is then put where it was.
            step: which; the latest that can be read when None, with a warning if that is not the last. Those after it, which
                cannot be read, are then removed by the next ``save``.
            strict: whether the checkpoint may hold nothing that ``like`` lacks.

        Raises:
            CheckpointError: there is no such checkpoint, it is damaged, or ``like`` does not fit it; all that does not is
                named, and nothing has changed.
        """
        self.wait()
        steps = self.steps if step is None else [checks.integer(self, "step", step, 0)]
        require(steps and (step is None or step in self.steps), self, "there is no such checkpoint", step=step, steps=self.steps)
        passed: set[int] = set()
        for candidate in reversed(steps):
            try:
                manifest = self._manifest(candidate)
                leaves, treedef = _flatten(like)
                _require_fit(leaves, manifest["leaves"], strict)
                values = self._read(candidate, leaves, manifest["leaves"])
            except _DamagedError as error:
                if candidate == steps[0]:
                    raise CheckpointError(f"Checkpointer: step {candidate} cannot be read: {error}") from error
                passed.add(candidate)
                warnings.warn(f"the checkpoint of step {candidate} cannot be read, the one before is taken: {error}", stacklevel=2)
                continue
            self._damaged |= passed
            return Restored(candidate, _unflatten(like, treedef, values, manifest["generator"]))
        raise AssertionError

    def wait(self) -> None:
        """Return once what was saved is on the disk.

        Raises:
            CheckpointError: it could not be written; earlier checkpoints are as they were.
        """
        self._run(self._manager.wait_until_finished)
        self._run(self._manager.check_for_errors)

    def close(self) -> None:
        """Wait, and let go of the threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self, call: Any) -> Any:
        try:
            return call()
        except Exception as error:  # orbax and tensorstore have no common one
            raise CheckpointError(f"Checkpointer: saving failed, earlier checkpoints are as they were: {error}") from error

    def _manifest(self, step: int) -> dict[str, Any]:
        args = self._ocp.args.Composite(**{_MANIFEST: self._ocp.args.JsonRestore()})
        try:
            manifest = self._manager.restore(step, args=args)[_MANIFEST]
            known = manifest["version"] == _VERSION and isinstance(manifest["leaves"], dict) and len(manifest["generator"]) == 2
        except Exception as error:
            raise _DamagedError(str(error)) from error
        require(known, self, f"the checkpoint must be of version {_VERSION}", step=step)
        return manifest

    def _read(self, step: int, leaves: Mapping[str, Any], described: Mapping[str, Any]) -> dict[str, Any]:
        wanted = {name: leaf for name, leaf in leaves.items() if _stored(described[name])}
        places = {name: self._place(leaf, described[name]) for name, leaf in wanted.items()}
        item = {name: jax.ShapeDtypeStruct(described[name]["shape"], np.dtype(described[name]["dtype"])) for name in wanted}
        args = self._ocp.args.PyTreeRestore(item, restore_args=places, partial_restore=True)
        try:
            arrays = self._manager.restore(step, args=self._ocp.args.Composite(**{_ARRAYS: args}))[_ARRAYS] if wanted else {}
        except Exception as error:
            raise _DamagedError(str(error).split("\n")[0]) from error
        return {name: _value(leaf, described[name], arrays.get(name)) for name, leaf in leaves.items()}

    def _place(self, leaf: Any, described: Mapping[str, Any]) -> Any:
        if isinstance(leaf, (np.ndarray, np.generic)):
            return self._ocp.RestoreArgs(restore_type=np.ndarray)
        sharding = _key_data(leaf).sharding if isinstance(leaf, jax.Array) else leaf.sharding
        sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return self._ocp.ArrayRestoreArgs(sharding=sharding, global_shape=tuple(described["shape"]), dtype=np.dtype(described["dtype"]))


class _DamagedError(Exception):
    """A checkpoint that cannot be read."""


def _is_stateful(value: Any) -> bool:
    return isinstance(value, (Module, Optimizer))


def _state_of(value: Any) -> Any:
    """The arrays of a Module or Optimizer by name, where they are."""
    if isinstance(value, Module):
        return dict(value.state_dict())
    value.prepare()
    return value._leaves()


def _flatten(state: Any) -> tuple[dict[str, Any], Any]:
    """The leaves by path, those of Modules and Optimizers among them, and the structure around these."""
    outer, treedef = jax.tree_util.tree_flatten_with_path(state, is_leaf=_is_stateful)
    leaves: dict[str, Any] = {}
    for path, value in outer:
        inner = jax.tree_util.tree_flatten_with_path(_state_of(value))[0] if _is_stateful(value) else [((), value)]
        leaves |= {jax.tree_util.keystr(path) + jax.tree_util.keystr(within): leaf for within, leaf in inner}
    return leaves, treedef


def _unflatten(like: Any, treedef: Any, values: Mapping[str, Any], position: list[int]) -> Any:
    found, loads = [], []
    for path, value in jax.tree_util.tree_flatten_with_path(like, is_leaf=_is_stateful)[0]:
        if _is_stateful(value):
            prefix = jax.tree_util.keystr(path)
            inner, inside = jax.tree_util.tree_flatten_with_path(_state_of(value))
            loads.append((value, jax.tree.unflatten(inside, [values[prefix + jax.tree_util.keystr(within)] for within, _ in inner])))
            found.append(value)
        else:
            found.append(values[jax.tree_util.keystr(path)])
    for value, state in loads:
        value.load_state_dict(state)
    if loads:
        _set_generator(*position)
    return jax.tree.unflatten(treedef, found)


def _generator_position() -> tuple[int, int]:
    return rng.default_generator._seed, rng.default_generator._count


def _set_generator(seed: int, count: int) -> None:
    rng.default_generator.manual_seed(seed)._count = count


# Leaves. Those that orbax does not store, empty arrays among them, are in the manifest.


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_data(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _describe(name: str, leaf: Any) -> dict[str, Any]:
    """What the manifest says of a leaf."""
    if _is_key(leaf):
        data = jax.eval_shape(jax.random.key_data, leaf)
        return {"key": str(jax.random.key_impl(leaf)), "shape": [*data.shape], "dtype": data.dtype.name}
    if isinstance(leaf, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)):
        require(leaf.dtype.kind not in "OSUM", Checkpointer, "arrays must hold numbers", name=name, dtype=leaf.dtype)
        return {"shape": [*leaf.shape], "dtype": leaf.dtype.name}
    if isinstance(leaf, (bool, int, float, str)):
        return {"value": leaf}
    if isinstance(leaf, bytes):
        return {"bytes": base64.b64encode(leaf).decode()}
    known = isinstance(leaf, complex)
    require(known, Checkpointer, "a state holds arrays, keys, numbers, strings, bytes, Modules and Optimizers", name=name, leaf=type(leaf))
    return {"complex": [leaf.real, leaf.imag]}


def _stored(described: Mapping[str, Any]) -> bool:
    return "shape" in described and 0 not in described["shape"]


def _value(leaf: Any, described: Mapping[str, Any], array: Any) -> Any:
    """The value of a leaf that is to be like ``leaf``."""
    if "shape" in described:
        if array is None:
            array = np.empty(described["shape"], described["dtype"])
            array = array if isinstance(leaf, np.ndarray) else jnp.asarray(array)
        if "key" in described:
            return jax.random.wrap_key_data(array, impl=described["key"])
        return array[()] if isinstance(leaf, np.generic) else array
    if "bytes" in described:
        return base64.b64decode(described["bytes"])
    return complex(*described["complex"]) if "complex" in described else described["value"]


def _require_fit(leaves: Mapping[str, Any], described: Mapping[str, Any], strict: bool) -> None:
    problems = [f"missing {name}" for name in leaves if name not in described]
    problems += [f"unexpected {name}" for name in described if strict and name not in leaves]
    for name in leaves:
        own, saved = _describe(name, leaves[name]), described.get(name)
        if saved is None:
            continue
        if own.keys() != saved.keys():
            problems.append(f"{name}: {_kind(saved)} in the checkpoint, {_kind(own)} here")
        elif "shape" in own and own != saved:
            problems.append(f"{name}: {saved['dtype']}{saved['shape']} in the checkpoint, {own['dtype']}{own['shape']} here")
    require(not problems, Checkpointer, "the checkpoint does not fit: " + "; ".join(problems))


def _kind(described: Mapping[str, Any]) -> str:
    return (
        "a random key"
        if "key" in described
        else "an array"
        if "shape" in described
        else f"a {'number' if 'value' in described else next(iter(described))}"
    )
