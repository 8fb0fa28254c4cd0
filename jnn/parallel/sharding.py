"""Parameters and optimizer state spread over a mesh, by rules on their names."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ..core import checks, rng, tree
from ..module.bridge import pure, update
from ..module.module import Module
from ..module.structure import structure
from .arrays import auto

M = TypeVar("M", bound=Module)
Rule = P | Callable[[str, tuple[int, ...], Mesh], P]
Rules = Mapping[str, Rule]


def fsdp(axis: str = "data", min_size: int = 2**14) -> Rule:
    """The rule of fully sharded data parallel: an array's largest dimension that the axis divides is spread over it.

    Args:
        axis: an axis of the mesh.
        min_size: arrays of fewer elements are repeated on all devices, as are those with no such dimension.
    """

    def rule(name: str, shape: tuple[int, ...], mesh: Mesh) -> P:
        checks.require(axis in mesh.axis_names, "fsdp", "axis must be one of the mesh", axis=axis, mesh=mesh.axis_names)
        fitting = [n if n % mesh.shape[axis] == 0 else 0 for n in shape]
        if math.prod(shape) < min_size or not any(fitting):
            return P()
        return P(*[None] * fitting.index(max(fitting)), axis)

    return rule


def shardings(shapes: Mapping[str, Any], mesh: Mesh, rules: Rules | None = None) -> tree.Tree:
    """Where each array of a tree lives, as a tree of ``NamedSharding``.

    Args:
        shapes: nested dicts of arrays or of ``jax.ShapeDtypeStruct``, as ``init`` and ``jnn.split`` give.
        mesh: the devices.
        rules: by pattern on the dotted name (``{"*.linear1.weight": P("model", None), "*": fsdp("data")}``, the first that
            matches counts, ``*`` spans dots), a ``PartitionSpec`` or a function ``(name, shape, mesh)`` that gives one. What
            none matches is repeated on all devices. None: ``{"*": fsdp(the first axis of the mesh)}``.

    Raises:
        ValueError: a pattern that matches no name; an axis that the mesh does not have; a specification of more dimensions
            than the array has, or one whose axes do not divide their dimension.
    """
    return _shardings(tree.flatten(shapes), auto(mesh), rules)


def _shardings(flat: Mapping[str, Any], mesh: Mesh, rules: Rules | None) -> tree.Tree:
    given = {"*": fsdp(mesh.axis_names[0])} if rules is None else rules
    for pattern in given:
        found = any(fnmatch.fnmatchcase(name, pattern) for name in flat)
        checks.require(found or pattern == "*", "shardings", "every pattern must match a name", pattern=pattern)

    def place(name: str, shape: tuple[int, ...]) -> NamedSharding:
        rule = next((given[pattern] for pattern in given if fnmatch.fnmatchcase(name, pattern)), P())
        spec = rule if isinstance(rule, P) else rule(name, shape, mesh)
        _check(name, shape, spec, mesh)
        return NamedSharding(mesh, spec)

    return tree.unflatten({name: place(name, tuple(value.shape)) for name, value in flat.items()})


def _check(name: str, shape: tuple[int, ...], spec: P, mesh: Mesh) -> None:
    who, got = "shardings", {"name": name, "shape": shape, "spec": spec}
    checks.require(len(spec) <= len(shape), who, "a specification must not have more dimensions than its array", **got)
    for size, axes in zip(shape, spec, strict=False):
        names = () if axes is None else axes if isinstance(axes, tuple) else (axes,)
        checks.require(set(names) <= set(mesh.axis_names), who, "a specification must name axes of the mesh", **got, mesh=mesh.axis_names)
        parts = math.prod(mesh.shape[axis] for axis in names)
        checks.require(size % parts == 0, who, "the axes of a specification must divide their dimension", **got, parts=parts)


def init_sharded(net: Any, key: jax.Array, mesh: Mesh, rules: Rules | None = None, *example: Any, **kw: Any) -> tuple[tree.Tree, tree.Tree]:
    """``net.init(key)`` with every array made in its place: no device ever holds more than its part.

    Args:
        net: a pure layer, or ``jnn.pure(module)``.
        mesh, rules: see :func:`shardings`.
        example: the inputs of a call, for lazy layers.

    Returns:
        ``(params, buffers)``, for ``jax.jit(net.apply)``, which XLA splits as they are split.
    """
    order: list[list[str]] = []  # a compiled function returns dicts in the order of the alphabet

    def init(key: jax.Array, *example: Any) -> Any:
        flat = [tree.flatten(part) for part in net.init(key, *example, **kw)]
        order[:] = map(list, flat)
        return flat

    params, buffers = jax.eval_shape(init, key, *example)
    both = tree.flatten(_shardings(params | buffers, auto(mesh), rules))
    places = [{name: both[name] for name in part} for part in (params, buffers)]
    made = jax.jit(init, out_shardings=places)(key, *example)
    params, buffers = (tree.unflatten({name: part[name] for name in names}) for part, names in zip(made, order, strict=True))
    return params, buffers


def shard(module: M, mesh: Mesh, rules: Rules | None = None, key: jax.Array | None = None) -> M:
    """Spread a module's parameters and buffers over a mesh, in place; returns it.

    One that was made with ``device="meta"`` is initialised there, and never whole on one device. A ``jnn.optim.Optimizer``
    that is made afterwards has its state where the parameters are. Train it by
    ``jnn.parallel.train_step(..., mesh=mesh, mapping="jit")``.

    Args:
        mesh, rules: see :func:`shardings`.
        key: for the initial values of an abstract module; drawn from ``jnn.manual_seed``'s when None.

    Raises:
        ValueError: see :func:`shardings`; only a part of the module is abstract.
    """
    now = structure(module)
    variables = {**now.params, **now.held}
    abstract = [isinstance(v._value, jax.ShapeDtypeStruct) for v in variables.values()]
    if any(abstract):
        checks.require(all(abstract), "shard", "all parameters and buffers must be abstract, or none")
        params, buffers = init_sharded(pure(module), rng.next_key("shard", key), mesh, rules)
        update(module, params, buffers)
        return module
    flat = tree.flatten(_shardings(variables, auto(mesh), rules))
    for name, variable in variables.items():
        variable.data = _put(variable.detach(), flat[name])
    return module


def _put(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable or not x.is_fully_addressable:
        return jax.device_put(x, sharding)
    host = np.asarray(x)  # the same in all processes
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
