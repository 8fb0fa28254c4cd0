"""``Placement``: a training call on the devices of a mesh, by ``shard_map``, ``pmap`` or XLA's partitioner."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ..core import checks
from ..core.spread import Spread, over, parse_group
from ..layers.batchnorm import SyncBatchNorm
from ..module import training
from ..module.training import Loss
from . import arrays as placed
from .arrays import Rows, even_split

Step = Callable[..., Any]
MAPPINGS = ("shard_map", "pmap", "jit")


class Placement:
    """How the training calls of a model are spread over the devices of a mesh.

    With ``"shard_map"`` and ``"pmap"`` each device computes the loss of its rows, with batch statistics and random numbers of
    its own, and the gradients are averaged, once. With ``"jit"`` the program is that of one device on the whole batch, and
    XLA splits it as the batch and the parameters are split; so only there may parameters be sharded.

    Args:
        mesh: the devices; all of all processes, in a row, when None.
        axis_name: the axis or axes of the mesh that the batch is spread over. On others it is repeated.
        mapping: ``"shard_map"``, ``"pmap"`` (of a mesh of one axis) or ``"jit"``.
        broadcast_buffers: whether all devices take the buffers of the first after a step. Without, each process keeps those
            of its own first device.
        uneven: whether processes may give different numbers of rows, which they then tell each other at each step.

    Raises:
        ValueError: an axis that the mesh does not have, another mapping, or a mesh of several axes for ``"pmap"``.
    """

    def __init__(
        self,
        mesh: Mesh | None = None,
        axis_name: str | Sequence[str] = "data",
        mapping: str = "shard_map",
        broadcast_buffers: bool = True,
        uneven: bool = False,
    ) -> None:
        self.axes = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
        if mesh is None:
            checks.require(len(self.axes) == 1, self, "several axes need a mesh", axis_name=self.axes)
            mesh = Mesh(np.array(jax.devices()), self.axes)
        known = self.axes and set(self.axes) <= set(mesh.axis_names)
        checks.require(known, self, "axis_name must be of axes of the mesh", axis_name=self.axes, mesh=mesh.axis_names)
        self.mesh = placed.auto(mesh)
        checks.choice(self, "mapping", mapping, MAPPINGS)
        one = mapping != "pmap" or (self.mesh.axis_names == self.axes and len(self.axes) == 1)
        checks.require(one, self, "pmap needs a mesh of one axis", mesh=self.mesh.axis_names)
        self.mapping, self.broadcast_buffers, self.uneven = mapping, broadcast_buffers, uneven
        self.sizes = tuple(self.mesh.shape[axis] for axis in self.axes)

    def compile_gradient(self, loss: Loss) -> Step:
        """``loss`` and its gradients, averaged over the batch."""

        def step(gradient: Step) -> Step:
            def run(params: Any, held: Any, state: Any, seed: Any, arrays: Any) -> Any:
                (value, (aux, written)), grads = gradient(params, held, seed, arrays)
                return grads, state, written, value, aux

            return run

        run = _Run(self, loss, step, donate=())

        def evaluate(params: Any, held: Any, seed: Any, arrays: Any) -> Any:
            grads, _, written, value, aux = run(params, held, (), seed, arrays)
            return (value, (aux, written)), grads

        return evaluate

    def compile_step(self, optimizer: Any, loss: Loss) -> Step:
        """One donated step of ``loss`` and ``optimizer``."""
        return _Run(self, loss, optimizer.step_function, donate=(0, 2))

    def average(self, trees: Any) -> Any:
        """The mean over all devices of what each process holds."""
        whole = placed.to_global(trees, self.mesh, repeated=True)
        return placed.to_local(_averaging(self.mesh, self.axes)(whole), self.mesh)


@functools.lru_cache(maxsize=64)
def _averaging(mesh: Mesh, axes: tuple[str, ...]) -> Step:
    return jax.jit(jax.shard_map(lambda trees: lax.pmean(trees, axes), mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False))


class _Run:
    """The compiled forms of one step: for a batch that the devices divide, and for any other."""

    def __init__(self, placement: Placement, loss: Loss, step: Callable[[Step], Step], donate: tuple[int, ...]) -> None:
        self._placement, self._loss, self._step, self._donate = placement, loss, step, donate
        self._programs: dict[Any, Step] = {}
        self._equal = _synchronized(loss, placement.axes)
        self._key: tuple[Any, Any, Any] | None = None
        self._aux: Any = None  # the structure of the aux of a mapped call, and which of its leaves have rows
        self._aux_rows: list[bool] = []

    def __call__(self, params: Any, held: Any, state: Any, seed: Any, arrays: Any) -> Any:
        """``(new params, state, written buffers, loss, aux)``."""
        at = self._placement
        compiled, args, mapped, held_globally = self._prepare(params, held, state, seed, arrays)
        new, state, written, value, aux = compiled(*args)
        if not held_globally:
            new, state = placed.to_local((new, state), at.mesh)
            written = placed.to_local(written, at.mesh, from_first=mapped and not at.broadcast_buffers)
        return new, state, written, placed.to_local(value, at.mesh), self._joined(aux) if mapped else aux

    def lower(self, *args: Any) -> Any:
        """The program of a call, lowered."""
        compiled, args, *_ = self._prepare(*args)
        return compiled.lower(*args)

    def _prepare(self, params: Any, held: Any, state: Any, seed: Any, arrays: Any) -> tuple[Any, tuple[Any, ...], bool, bool]:
        """The program of a call and its arguments; whether it is mapped, and whether its arrays stay global."""
        at = self._placement
        rows = Rows(at.mesh, at.axes, arrays, at.uneven)
        mapped, split = at.mapping != "jit" and rows.even, tuple(rows.split)
        held_globally = jax.process_count() > 1 and any(map(placed.is_global, jax.tree.leaves((params, held, state))))
        trees = params, held, state, self._seed_data(seed)
        if mapped and at.mapping == "pmap":
            return self._pmapped(split), (*placed.to_here(trees, at.mesh), rows.stacked()), mapped, held_globally
        there = placed.to_global(trees, at.mesh, repeated=at.mapping != "jit")
        compiled = self._shard_mapped(split) if mapped else self._partitioned(there[:3], rows)
        return compiled, (*there, rows.placed()), mapped, held_globally

    def _seed_data(self, seed: Any) -> Any:
        """The seed without a typed key, which global arrays cannot be made of; converted once for each key."""
        key, count = seed
        if self._key is None or self._key[0] is not key:
            data = placed.to_here(jax.random.key_data(key), self._placement.mesh)
            self._key = key, data, jax.random.key_impl(key)
        return self._key[1], count

    def _seed(self, data: Any) -> Any:
        assert self._key is not None
        return jax.random.wrap_key_data(data[0], impl=self._key[2]), data[1]

    # One device's program

    def _on_device(self, params: Any, held: Any, state: Any, seed: Any, arrays: Any) -> Any:
        return self._step(self._local_gradient)(params, held, state, self._seed(seed), tuple(arrays))

    def _local_gradient(self, params: Any, held: Any, seed: Any, arrays: Any) -> Any:
        at = self._placement
        key, count = seed
        own_seed = jax.random.fold_in(key, lax.axis_index(at.axes)), count
        with over(Spread(at.axes, at.sizes, True)):
            (value, (aux, written)), grads = jax.value_and_grad(self._loss, has_aux=True)(params, held, own_seed, arrays)
        value, grads = lax.pmean((value, grads), at.axes)
        return (value, (self._shared(aux), self._agreed(written))), grads

    def _agreed(self, written: dict[str, Any]) -> dict[str, Any]:
        """The first device's buffers on all; those of synchronised layers are equal already."""
        at = self._placement

        def from_first(value: Any) -> Any:
            number = value.astype(jnp.int32) if value.dtype == bool else value
            first = lax.axis_index(at.axes) == 0
            return lax.psum(jnp.where(first, number, jnp.zeros_like(number)), at.axes).astype(value.dtype)

        keep = set(written) if not at.broadcast_buffers else self._equal
        return {name: value if name in keep else from_first(value) for name, value in written.items()}

    def _shared(self, aux: Any) -> tuple[list[Any], list[Any]]:
        """The scalars of ``aux``, means of numbers and sums of counts, and its arrays, which are joined later."""
        leaves, self._aux = jax.tree.flatten(jax.tree.map(jnp.asarray, aux))
        self._aux_rows = [leaf.ndim > 0 for leaf in leaves]
        axes = self._placement.axes

        def share(x: Any) -> Any:
            if jnp.issubdtype(x.dtype, np.inexact):
                return lax.pmean(x, axes)
            return lax.psum(x.astype(jnp.int32) if x.dtype == bool else x, axes)

        scalars = [share(leaf) for leaf in leaves if not leaf.ndim]
        return scalars, [leaf for leaf in leaves if leaf.ndim]

    def _joined(self, aux: Any) -> Any:
        at = self._placement
        scalars, arrays = iter(placed.to_local(aux[0], at.mesh)), iter(aux[1])

        def rows(x: Any) -> Any:
            return x.reshape(-1, *x.shape[2:]) if at.mapping == "pmap" else placed.rows_of(x, at.mesh, P(at.axes))

        return jax.tree.unflatten(self._aux, [rows(next(arrays)) if array else next(scalars) for array in self._aux_rows])

    def _shard_mapped(self, split: tuple[bool, ...]) -> Step:
        at = self._placement

        def compile() -> Step:
            specs = P(), P(), P(), P(), [P(at.axes) if s else P() for s in split]
            out = P(), P(), P(), P(), (P(), P(at.axes))
            # Unchecked, a gradient is the device's own, whatever the function does: it is averaged once, above.
            mapped = jax.shard_map(self._on_device, mesh=at.mesh, in_specs=specs, out_specs=out, check_vma=False)
            return jax.jit(mapped, donate_argnums=self._donate)

        return self._compiled(split, compile)

    def _pmapped(self, split: tuple[bool, ...]) -> Step:
        at = self._placement

        def compile() -> Step:
            axes = None, None, None, None, [0 if s else None for s in split]
            out = None, None, None, None, (None, 0)
            devices = [*at.mesh.devices.flat]
            return jax.pmap(self._on_device, at.axes[0], in_axes=axes, out_axes=out, devices=devices, donate_argnums=self._donate)

        return self._compiled(split, compile)

    # The program of all devices together

    def _partitioned(self, state: Any, rows: Rows) -> Step:
        at, split = self._placement, tuple(rows.split)
        parts = NamedSharding(at.mesh, P(at.axes)) if rows.even else even_split(at.mesh, at.axes, rows.size)
        shardings = jax.tree.map(lambda x: x.sharding, state)
        names = self._loss.held_names

        def on_all(params: Any, held: Any, state: Any, seed: Any, arrays: Any) -> Any:
            batch = tuple(lax.with_sharding_constraint(x, parts) if s else x for x, s in zip(arrays, split, strict=True))
            with over(Spread(at.axes, at.sizes, False)):
                gradient = jax.value_and_grad(self._loss, has_aux=True)
                new, state, written, value, aux = self._step(gradient)(params, held, state, self._seed(seed), batch)
            # What goes round comes back as it was, or the next step would be another program.
            new, state = lax.with_sharding_constraint((new, state), (shardings[0], shardings[2]))
            own = dict(zip(names, shardings[1], strict=True))
            written = {name: lax.with_sharding_constraint(value, own[name]) for name, value in written.items()}
            return new, state, written, value, aux

        key = (split, parts, *jax.tree.leaves(shardings))
        return self._compiled(key, lambda: jax.jit(on_all, donate_argnums=self._donate))

    def _compiled(self, key: Any, compile: Callable[[], Step]) -> Step:
        if key not in self._programs:
            self._programs[key] = compile()
        return self._programs[key]


def _synchronized(loss: Loss, axes: tuple[str, ...]) -> set[str]:
    """The buffers that are equal on all devices: of layers synchronised over all of them."""
    found: set[str] = set()
    for module in loss.template.modules():
        if isinstance(module, SyncBatchNorm):
            group, groups = parse_group(module, module.process_group)
            if groups is None and (group is None or set(group) == set(axes)):
                found |= {slot.name for slot in module._buffers.values() if slot is not None}
    return found


def train_step(
    loss_fn: Callable[..., Any],
    optimizer: Any,
    has_aux: bool = False,
    *,
    mesh: Mesh | None = None,
    axis_name: str | Sequence[str] = "data",
    mapping: str = "shard_map",
    broadcast_buffers: bool = True,
    uneven: bool = False,
) -> Callable[..., Any]:
    """:func:`jnn.train_step` over the devices of a mesh: the same step on one, on many, and in several processes.

    A call ``step(*batch)`` takes the whole batch, or with several processes the rows of the one that calls, and returns the
    loss of all of it: the mean of its parts. Every array of the batch is split along its first dimension, over devices of one
    process and then over processes; numbers and scalars go to all.

    Rows that the devices do not divide, as those of the last batch of an epoch, are split in as many equal parts as they can
    be, and each is computed by several devices: 6 rows on 4 devices are 2 parts, 7 are one. The loss is the mean over the rows
    all the same, and batch statistics are of all of them. It takes the time and memory of the larger parts.

    Args:
        loss_fn: ``loss_fn(model, *batch)``, returning the mean over the rows of a batch. Of a mean over something else, as
            the words that are not padding, ``"jit"`` gives that of the whole batch and the others the mean of the devices'.
            It may name the axes in collectives, unless ``mapping`` is ``"jit"``.
        optimizer: a ``jnn.optim.Optimizer``.
        has_aux: ``loss_fn`` returns ``(loss, aux)``, and so does the step. In ``aux``, scalars are averaged over the devices,
            integers and bools summed; arrays are joined along their first dimension, of those that a process holds.
        mesh, axis_name, mapping, broadcast_buffers, uneven: see :class:`Placement`.

    Raises:
        ValueError: see :class:`Placement`; at the call, arrays of different numbers of rows, or with several processes a
            number that a process's devices do not divide, without ``uneven``.

    Differs from torch: the loss returned is the mean over all devices, not this process's own.
    """
    placement = Placement(mesh, axis_name, mapping, broadcast_buffers, uneven)
    return training.train_step(loss_fn, optimizer, has_aux, placement)
