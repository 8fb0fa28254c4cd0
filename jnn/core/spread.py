"""How the batch of a call is spread over devices, for layers that take statistics of all of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType

from . import checks

Array = jax.Array


class Spread(NamedTuple):
    """The axes that the batch of the running call is spread over.

    Of a ``mapped`` call the program is one device's, and the axes can be named in collectives. Of any other it is that of
    all devices together: it sees the whole batch, in parts that lie one after the other.
    """

    axes: tuple[Any, ...]
    sizes: tuple[int, ...]
    mapped: bool


_running: ContextVar[Spread | None] = ContextVar("jnn_spread", default=None)


@contextmanager
def over(spread: Spread) -> Iterator[None]:
    """Let layers called inside know how their batch is spread."""
    token = _running.set(spread)
    try:
        yield
    finally:
        _running.reset(token)


def running() -> Spread | None:
    """That of the running call."""
    return _running.get()


@dataclasses.dataclass(frozen=True)
class Shards:
    """The shards of a batch whose statistics are taken together with those of the one at hand: it alone."""

    parts = 1  # into how many the batch that the program sees falls; what is averaged has them on its first axis

    @property
    def count(self) -> int | Array:
        """How many they are."""
        return 1

    @property
    def least(self) -> int:
        """The least that any device may find."""
        return 1

    def mean(self, x: Array) -> Array:
        """The mean of ``x`` over them, the same bits on each."""
        return x


@dataclasses.dataclass(frozen=True)
class _Mapped(Shards):
    """All along mapped axes."""

    axes: tuple[Any, ...]

    @property
    def count(self) -> int:
        return lax.axis_size(self.axes)

    @property
    def least(self) -> int:
        return self.count

    def mean(self, x: Array) -> Array:
        return lax.pmean(x, self.axes)


@dataclasses.dataclass(frozen=True)
class _Groups(Shards):
    """Those of one group, where every shard along the axes belongs to one."""

    axes: tuple[Any, ...]
    groups: tuple[tuple[int, ...], ...]

    @property
    def least(self) -> int:
        return min(map(len, self.groups))

    def _sizes(self) -> np.ndarray:
        return np.array([len(group) for group in self.groups])

    def _group_of(self) -> np.ndarray:
        found = {member: i for i, group in enumerate(self.groups) for member in group}
        return np.array([found[i] for i in range(len(found))])


class _MappedGroups(_Groups):
    """Of mapped axes. ``psum`` takes groups under ``pmap`` only, ``all_gather`` under all but ``vmap``."""

    @property
    def count(self) -> int | Array:
        return self.least if len(set(map(len, self.groups))) == 1 else jnp.asarray(self._sizes())[self._group()]

    def _group(self) -> Array:
        return jnp.asarray(self._group_of())[lax.axis_index(self.axes)]

    def mean(self, x: Array) -> Array:
        if len(set(map(len, self.groups))) == 1:
            try:
                return jnp.mean(lax.all_gather(x, self.axes, axis_index_groups=self.groups), 0)
            except NotImplementedError:
                pass
        mine = self._group()
        rows = jnp.arange(len(self.groups)) == mine
        totals = lax.psum(jnp.where(rows.reshape(-1, *[1] * x.ndim), x[None], 0), self.axes)
        return totals[mine] / jnp.asarray(self._sizes(), x.dtype)[mine]


class _PartGroups(_Groups):
    """Of the parts that a whole batch falls into."""

    @property
    def parts(self) -> int:  # type: ignore[override]
        return sum(map(len, self.groups))

    @property
    def count(self) -> int:
        """That of the first part, whose statistics are kept."""
        return int(self._sizes()[self._group_of()[0]])

    def mean(self, x: Array) -> Array:
        group, sizes = self._group_of(), jnp.asarray(self._sizes(), x.dtype)
        totals = jax.ops.segment_sum(x, group, len(self.groups))
        return (totals / sizes.reshape(-1, *[1] * (x.ndim - 1)))[group]


WHOLE = Shards()


def parse_group(who: object, group: Any) -> tuple[tuple[Any, ...] | None, tuple[tuple[int, ...], ...] | None]:
    """``(axes, groups)`` of a process group: None, an axis name, a tuple of names, or a pair of either and groups of indices.

    Raises:
        ValueError: the groups are not such that each index from 0 is in one of them.
    """
    if group is None:
        return None, None
    names, groups = group, None
    if isinstance(group, tuple) and len(group) == 2 and _is_groups(group[1]):
        names, groups = group[0], tuple(tuple(map(int, members)) for members in group[1])
        indices = sorted(i for members in groups for i in members)
        ok = bool(indices) and all(groups) and indices == list(range(len(indices)))
        checks.require(ok, who, "each index along the axis must be in one group", ValueError, groups=groups)
    return names if isinstance(names, tuple) else (names,), groups


def _is_groups(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(isinstance(members, (tuple, list)) for members in value)


def find_shards(who: object, group: Any) -> Shards:
    """The shards that a process group means in the running call.

    Raises:
        RuntimeError: the axes are neither mapped nor axes that a sharded batch is known to be spread over, or their groups
            do not fit them.
    """
    axes, groups = parse_group(who, group)
    found = running()
    if axes is None:
        return _Mapped(found.axes) if found is not None and found.mapped else WHOLE
    size = _mapped_size(axes)
    if size is None:
        return _find_parts(who, group, axes, groups, found)
    _require_fit(who, groups, size)
    return _Mapped(axes) if groups is None else _MappedGroups(axes, groups)


def _mapped_size(axes: tuple[Any, ...]) -> int | None:
    try:
        return lax.axis_size(axes)
    except NameError:
        return None


def _require_fit(who: object, groups: tuple[tuple[int, ...], ...] | None, size: int) -> None:
    ok = groups is None or sum(map(len, groups)) == size
    checks.require(ok, who, "the groups must hold every index along the axis", RuntimeError, groups=groups, size=size)


def _find_parts(who: object, group: Any, axes: tuple[Any, ...], groups: tuple[tuple[int, ...], ...] | None, found: Spread | None) -> Shards:
    """``find_shards`` in a program that sees the whole batch."""
    mesh = jax.sharding.get_abstract_mesh()
    known = {n: s for n, s, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types) if kind != AxisType.Manual}
    spread = dict(zip(found.axes, found.sizes)) if found is not None and not found.mapped else None
    if not set(axes) <= (spread or known).keys():
        rule = (
            "process_group must name mapped axes; call it under jax.pmap, jax.vmap or jax.shard_map with that axis_name, "
            "by jnn.parallel, or, for a sharded batch, under jax.set_mesh"
        )
        checks.fail(who, rule, RuntimeError, process_group=group)
    spread = spread or {axis: known[axis] for axis in axes}
    _require_fit(who, groups, math.prod(spread[axis] for axis in axes))
    if groups is None and set(axes) == spread.keys():
        return WHOLE
    rest = [axis for axis in spread if axis not in axes]
    index = np.arange(math.prod(spread.values())).reshape(*spread.values())
    along = index.transpose([list(spread).index(axis) for axis in (*rest, *axes)]).reshape(-1, math.prod(spread[a] for a in axes))
    within = groups or (tuple(range(along.shape[1])),)
    return _PartGroups(tuple(spread), tuple(tuple(row[list(members)].tolist()) for row in along for members in within))
