"""Both sides of a row: the torch module and jnn's three faces, with the same numbers."""

from __future__ import annotations

import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import jnn
from jnn import layers, losses

from .cases import Case, cases

# Beside the fixture quick_compilation: without its newer emitters XLA:CPU compiles in half the time.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_cpu_use_fusion_emitters": False})


def ids(case: Case) -> str:
    return str(case)


def rows(*, test: str) -> list[Case]:
    """The rows to which a property applies; a row that sets it aside gives the reason, and is counted at the end."""
    return [case for case in cases() if test not in case.unlike]


def draw(case: Case) -> tuple[list[Any], dict[str, Any]]:
    """A row's inputs as numpy arrays, the same each time."""
    rng = np.random.default_rng(zlib.crc32(str(case).encode()))
    return [d(rng) for d in case.inputs], {name: d(rng) for name, d in case.call.items()}


def convert(x: Any, make: Any) -> Any:
    """``x`` with every numpy array in it made into an array of one side, and every row in it built."""
    if isinstance(x, np.ndarray):
        return make(x)
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(convert(v, make) for v in x))
    if isinstance(x, (tuple, list)):
        return type(x)(convert(v, make) for v in x)
    if isinstance(x, dict):
        return {k: convert(v, make) for k, v in x.items()}
    return x


def build(case: Case, source: Any, make: Any) -> Any:
    """Construct a row's class from ``source``: torch.nn, jnn, or a namespace of specs."""

    def argument(x: Any) -> Any:
        return build(x, source, make) if isinstance(x, Case) else convert(x, make)

    return getattr(source, case.name)(*map(argument, case.args), **{k: argument(v) for k, v in case.kwargs.items()})


class Specs:
    """Layers and losses as one namespace."""

    def __getattr__(self, name: str) -> Any:
        return getattr(layers, name, None) or getattr(losses, name)


def torch_module(case: Case, train: bool = True) -> torch.nn.Module:
    return build(case, torch.nn, torch.tensor).double().train(train)


def spec(case: Case) -> Any:
    return build(case, Specs(), np.asarray)


def module(case: Case, train: bool = True, dtype: Any = np.float64, like: torch.nn.Module | None = None) -> Any:
    """The stateful twin, with torch's values when ``like`` is given."""
    made = build(case, jnn, jnp.asarray).to(dtype=dtype).train(train)
    if like is not None:
        made.load_state_dict({k: v.numpy() for k, v in like.state_dict().items()})
    return made


def is_float(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, np.inexact)


def leaves(x: Any) -> list[Any]:
    """The arrays of a nest of tuples, lists and dicts, in one order for both sides."""
    if isinstance(x, dict):
        return [leaf for k in sorted(x) for leaf in leaves(x[k])]
    if isinstance(x, (tuple, list)):
        return [leaf for v in x for leaf in leaves(v)]
    return [] if x is None else [x]


def jax_inputs(case: Case, dtype: Any = None) -> tuple[list[Any], dict[str, Any]]:
    def make(x: np.ndarray) -> jax.Array:
        return jnp.asarray(x, dtype if dtype is not None and np.issubdtype(x.dtype, np.floating) else None)

    args, call = draw(case)
    return [convert(a, make) for a in args], {k: convert(v, make) for k, v in call.items()}


def split_floats(args: Any) -> tuple[list[Any], Any]:
    """The float arrays of a nest, and a function that puts others in their place."""
    flat, treedef = jax.tree.flatten(args)
    where = [i for i, leaf in enumerate(flat) if is_float(leaf)]

    def rebuild(values: Any) -> Any:
        new = list(flat)
        for i, v in zip(where, values, strict=True):
            new[i] = v
        return jax.tree.unflatten(treedef, new)

    return [flat[i] for i in where], rebuild


def float_leaves(x: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(x) if is_float(leaf)]


def assert_close(mine: Any, theirs: Any, rtol: float, atol: float, what: str = "") -> None:
    """The same arrays: number, shape, dtype, values."""
    a, b = leaves(mine), leaves(theirs)
    assert len(a) == len(b), f"{what}: {len(a)} arrays, torch has {len(b)}"
    for i, (m, t) in enumerate(zip(a, b, strict=True)):
        if isinstance(t, torch.Tensor):
            assert str(m.dtype) == str(t.dtype).removeprefix("torch."), f"{what}[{i}]"
            t = t.detach().numpy()
        assert np.shape(m) == np.shape(t), f"{what}[{i}]"
        np.testing.assert_allclose(np.asarray(m), np.asarray(t), rtol=rtol, atol=atol, err_msg=f"{what}[{i}]")
