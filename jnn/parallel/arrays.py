"""Arrays on the devices of a mesh: repeated on all, or their rows split; of one process and of several.

With several processes a value that all repeat is held by each on its own devices, so that models stay what they are on one;
it becomes one global array for the time of a call, without a copy.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ..core import checks


def auto(mesh: Mesh) -> Mesh:
    """The mesh with axes that the compiler looks after, whatever ``jax.make_mesh`` has made of them."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def is_global(x: Any) -> bool:
    """Whether other processes hold parts of ``x``."""
    return isinstance(x, jax.Array) and not x.is_fully_addressable


def local_devices(who: object, device_ids: Sequence[Any] | None) -> list[Any]:
    """The devices of this process by number, or as they are; all when None."""
    devices = jax.local_devices()
    ids = [*range(len(devices))] if device_ids is None else [devices.index(d) if d in devices else d for d in device_ids]
    known = ids and all(i in range(len(devices)) for i in ids) and len(set(ids)) == len(ids)
    checks.require(known, who, f"device_ids must be numbers of the {len(devices)} local devices", device_ids=device_ids)
    return [devices[i] for i in ids]


@functools.lru_cache(maxsize=64)
def _repeated(mesh: Mesh) -> NamedSharding:
    """On this process's devices of a mesh."""
    local = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    return NamedSharding(mesh if len(local) == mesh.size else Mesh(np.array(local), ("local",)), P())


def to_here(trees: Any, mesh: Mesh) -> Any:
    """The leaves repeated on this process's devices of the mesh."""
    here = _repeated(mesh)
    return jax.tree.map(lambda x: x if isinstance(x, jax.Array) and x.sharding == here else jax.device_put(x, here), trees)


def to_global(trees: Any, mesh: Mesh, repeated: bool) -> Any:
    """The leaves as arrays on all devices of the mesh: those that are there already, the others repeated.

    Raises:
        ValueError: all are to be ``repeated``, and one is split.
    """
    here, everywhere = _repeated(mesh), NamedSharding(mesh, P())
    one_process = here.num_devices == everywhere.num_devices

    def place(x: Any) -> Any:
        sharding = x.sharding if isinstance(x, jax.Array) else None
        if sharding is None or (sharding != here and sharding.device_set != everywhere.device_set):
            x = jax.device_put(x, here)
        elif sharding != here:
            if not repeated:
                return x
            if not x.is_fully_replicated:
                checks.fail("train_step", 'only mapping="jit" takes sharded parameters', ValueError, sharding=sharding)
            if not one_process:
                return x
            x = jax.device_put(x, here)
        if one_process:
            return x
        return jax.make_array_from_single_device_arrays(x.shape, everywhere, [shard.data for shard in x.addressable_shards])

    return jax.tree.map(place, trees)


def to_local(trees: Any, mesh: Mesh, from_first: bool = False) -> Any:
    """The leaves that all devices repeat as arrays of this process; of several processes the others stay global.

    With ``from_first`` they are repeated only in name, and the value of this process's first device counts.
    """
    here = _repeated(mesh)
    if here.num_devices == mesh.size and not from_first:
        return trees

    def take(x: Any) -> Any:
        if from_first:
            return jax.device_put(x.addressable_data(0), here)
        if x.is_fully_addressable or not x.is_fully_replicated:
            return x
        return jax.make_array_from_single_device_arrays(x.shape, here, [shard.data for shard in x.addressable_shards])

    return jax.tree.map(take, trees)


def rows_of(x: jax.Array, mesh: Mesh, spec: P) -> jax.Array:
    """The rows of a split global array that this process holds."""
    if x.is_fully_addressable:
        return x
    from jax.experimental import multihost_utils  # which imports much

    return multihost_utils.global_array_to_host_local_array(x, mesh, spec)


def _host(x: Any) -> np.ndarray:
    x = np.asarray(x)
    return x.astype(jax.dtypes.canonicalize_dtype(x.dtype), copy=False)


def shard_batch(batch: Any, mesh: Mesh, axis_name: str | Sequence[str] = "data") -> Any:
    """A batch in host memory as global arrays whose rows are spread over the mesh, for ``jnn.parallel.train_step``.

    Of several processes each gives the whole batch, and keeps the rows of its own devices. A batch that the devices do not
    divide, as the last of an epoch, is repeated on all; the step splits it as far as that can be done.

    Shape: every array (N, ...), of one N.

    Args:
        batch: a pytree of arrays.
        mesh: the mesh of the step.
        axis_name: the axis or axes over which the rows are spread.

    Raises:
        ValueError: arrays without rows, or of different numbers of rows.
    """
    leaves, treedef = jax.tree.flatten(batch)
    axes = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    checks.require(set(axes) <= set(mesh.axis_names), "shard_batch", "axis_name must be of axes of the mesh", axis_name=axes)
    sizes = {np.shape(x)[0] if np.ndim(x) else -1 for x in leaves}
    checks.require(len(sizes) == 1 and -1 not in sizes, "shard_batch", "the arrays must have one number of rows", sizes=sorted(sizes))
    parts = math.prod(mesh.shape[axis] for axis in axes)
    sharding = NamedSharding(auto(mesh), P() if sizes.pop() % parts else P(axes))

    def place(x: Any) -> jax.Array:
        host = _host(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.unflatten(treedef, map(place, leaves))


def even_split(mesh: Mesh, axes: tuple[str, ...], rows: int) -> NamedSharding:
    """A sharding of ``rows`` rows in as many equal parts as the axes allow, each repeated on the devices that are left.

    Unequal parts are not for XLA: it adds their padding to the gradient of a table that is indexed with them.
    """
    factors = dict.fromkeys(mesh.axis_names, 1)
    for axis in axes:
        factors[axis] = math.gcd(rows, mesh.shape[axis])
        rows //= factors[axis]
    # Each axis is split in place, so that the devices keep the order that a program must have from all its arrays.
    shape = [n for axis, size in mesh.shape.items() for n in (factors[axis], size // factors[axis])]
    names = [name for axis in mesh.axis_names for name in (f"{axis} parts", f"{axis} copies")]
    return NamedSharding(Mesh(mesh.devices.reshape(shape), names), P(tuple(f"{axis} parts" for axis in axes)))


class Rows:
    """The arrays of a batch for one call: which have rows, how many, and whether the devices divide them.

    Args:
        mesh, axes: the devices, and the axes that the rows are spread over.
        arrays: what the caller has given: of several processes, the rows of each, or global arrays.
        uneven: whether the processes must tell each other how many rows they have.

    Raises:
        ValueError: arrays of different numbers of rows, or of several processes rows that their devices do not divide.
    """

    def __init__(self, mesh: Mesh, axes: tuple[str, ...], arrays: Sequence[Any], uneven: bool) -> None:
        self._mesh, self._axes, self.arrays = mesh, axes, list(arrays)
        self.split = [np.ndim(x) > 0 for x in arrays]
        given = [x for x, split in zip(arrays, self.split, strict=True) if split]
        sizes = {x.shape[0] for x in given}
        checks.require(len(sizes) <= 1, "train_step", "the arrays of a batch must have one number of rows", sizes=sorted(sizes))
        self.size = sizes.pop() if sizes else 0
        self._total = math.prod(mesh.shape[axis] for axis in axes)
        self._whole = _repeated(mesh).num_devices == mesh.size or any(map(is_global, given))
        if uneven and not self._whole:
            self._gather()
        parts = self._total if self._whole else _parts_here(mesh, axes)
        self.even = self.size % parts == 0
        if not self.even and not self._whole:
            rule = "the devices of a process must divide its rows; pass uneven=True, or global arrays of jnn.parallel.shard_batch"
            checks.fail("train_step", rule, ValueError, rows=self.size, devices=parts)

    def _gather(self) -> None:
        """Take the rows of all processes where these have not equally many, or a number that is not divided."""
        from jax.experimental import multihost_utils

        sizes = multihost_utils.process_allgather(np.array(self.size))
        if (sizes == sizes[0]).all() and sizes[0] % _parts_here(self._mesh, self._axes) == 0:
            return
        for i, x in enumerate(self.arrays):
            if self.split[i]:
                host = _host(x)
                padded = np.pad(host, [(0, int(sizes.max()) - len(host))] + [(0, 0)] * (host.ndim - 1))
                each = multihost_utils.process_allgather(padded)
                self.arrays[i] = np.concatenate([rows[:size] for rows, size in zip(each, sizes, strict=True)])
        self.size, self._whole = int(sizes.sum()), True
        spread = shard_batch([x for x, split in zip(self.arrays, self.split, strict=True) if split], self._mesh, self._axes)
        feed = iter(spread)
        self.arrays = [next(feed) if split else x for x, split in zip(self.arrays, self.split, strict=True)]

    def placed(self) -> list[Any]:
        """The arrays on the mesh: rows split where the devices divide them."""
        sharding = NamedSharding(self._mesh, P(self._axes) if self.even else P())

        def place(x: Any) -> Any:
            if self._whole:
                return x if isinstance(x, jax.Array) and x.sharding == sharding else jax.device_put(x, sharding)
            return jax.make_array_from_process_local_data(sharding, _host(x))

        return [place(x) if split else x for x, split in zip(self.arrays, self.split, strict=True)]

    def stacked(self) -> list[Any]:
        """The arrays of this process with an axis of its devices first, for ``pmap``."""
        parts = _parts_here(self._mesh, self._axes)
        return [
            x.reshape(parts, x.shape[0] // parts, *x.shape[1:]) if split else x for x, split in zip(self.arrays, self.split, strict=True)
        ]


@functools.lru_cache(maxsize=64)
def _parts_here(mesh: Mesh, axes: tuple[str, ...]) -> int:
    """How many different parts of the rows this process's devices hold."""
    dims = [mesh.axis_names.index(axis) for axis in axes]
    index = np.argwhere(np.vectorize(lambda d: d.process_index == jax.process_index(), otypes=[bool])(mesh.devices))
    return len(np.unique(index[:, dims], axis=0))
