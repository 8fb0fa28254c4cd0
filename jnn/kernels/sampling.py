"""Sums of rows at given indices, each times a weight: what sampling of images, embeddings and their bags are made of."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .foreign import foreign, takes
from .multilinear import Like, multilinear
from .platform import by_library
from .varying import transposed

Array = jax.Array

# An index that stands for a row of the value for what is missing, as every index does that is out of range.
MISSING = -1
# Rows of fewer numbers are shuffled faster by XLA: 0.4 of the library's time for rows of one, 1.1 to 1.6 for rows of 49.
_LEAST_ROW = 32
# Channels from which on the gradient is faster with a pixel's channels side by side.
_WIDE = 16


class Form(NamedTuple):
    """How arrays are laid out.

    Args:
        planes: whether x is (N, C, V), index and weight (N, T, P) and the result (N, C, P), and no entry is left out; else x is
            (N, V, C), index and weight (N, P, T) and the result (N, P, C).
        missing: what stands in a row of x that an index out of range is of.
        nothing: the index of entries that are left out.
        weighted: whether there are weights; else those that are given are 1, of any shape.
        ragged: whether ``bounds`` say which entries are of which place; index and weight are then (1, entries).
    """

    planes: bool
    missing: float
    nothing: int = np.iinfo(np.int32).min
    weighted: bool = True
    ragged: bool = False


def sample(form: Form, x: Array, weight: Array, index: Array, bounds: Array | None = None) -> Array:
    """For each place the sum over its entries of ``weight * x[index]``. Indices are int32."""
    if not by_library():
        return _sample(form, x, weight, index, bounds)
    if bounds is None:
        bounds = jnp.zeros(1, np.int32)
    return _bilinear(form, x, weight, index, bounds)


def rows(x: Array, index: Array) -> Array:
    """The rows of ``x`` (V, D) at ``index``; where that is out of range they are NaN, or of what else fills arrays of integers."""
    if not takes(x, index):
        return x.at[index].get(mode="fill", wrap_negative_indices=False)
    return bags(x, index.reshape(-1, 1)).reshape(*index.shape, x.shape[1])


def bags(x: Array, index: Array, factors: Array | None = None, nothing: int | None = None, bounds: Array | None = None) -> Array:
    """The sums of the rows of ``x`` (V, D) at each of ``index`` (B, L) but ``nothing``, times ``factors``; NaN where out of range.

    Args:
        bounds: for index (n,), where in it each bag begins and the last ends, (B + 1,).
    """
    if index.dtype != np.int32:
        index = jnp.where((index >= 0) & (index < len(x)), index, MISSING).astype(np.int32)
    form = Form(planes=False, missing=np.nan, weighted=factors is not None, ragged=bounds is not None)
    form = form if nothing is None else form._replace(nothing=nothing)
    weight = jnp.ones((1,) * index.ndim, x.dtype) if factors is None else factors.astype(x.dtype)
    return sample(form, x[None], weight[None], index[None], bounds)[0]


def shuffled(groups: int, x: Array) -> Array:
    """The rows of ``x`` (*, V, D), which are in so many groups, one of each group in turn."""
    return _shuffled(groups, x) if takes(x) and x.shape[-1] >= _LEAST_ROW else _shuffled_as_defined(groups, x)


def _shuffled_as_defined(groups: int, x: Array) -> Array:
    *outer, count, width = x.shape
    return x.reshape(*outer, groups, count // groups, width).swapaxes(-2, -3).reshape(x.shape)


def _shuffled_by_rows(groups: int, x: Array) -> Array:
    # The rows are neighbours, which XLA would copy number by number.
    count, width = x.shape[-2:]
    samples = x.reshape(-1, count, width)
    order = np.arange(count, dtype=np.int32).reshape(groups, count // groups).T.reshape(1, count, 1)
    index = jnp.broadcast_to(order, (len(samples), count, 1))
    form = Form(planes=False, missing=0.0, weighted=False)
    return sample(form, samples, jnp.ones((1, 1, 1), x.dtype), index).reshape(x.shape)


def _sample(form: Form, x: Array, weight: Array, index: Array, bounds: Array | None) -> Array:
    if form.planes:
        return _planes(form, x, weight, index)
    values = jax.vmap(functools.partial(_rows, form))(x, index) * weight[..., None]
    if not form.ragged:
        return values.sum(2) if index.shape[2] > 1 else values[:, :, 0]
    assert bounds is not None
    bag = jnp.searchsorted(bounds, jnp.arange(index.shape[1], dtype=np.int32), side="right") - 1
    return jax.ops.segment_sum(values[0], bag, len(bounds) - 1)[None]


def _rows(form: Form, x: Array, index: Array) -> Array:
    rows = x.at[index].get(mode="fill", fill_value=form.missing, wrap_negative_indices=False)
    return jnp.where((index == form.nothing)[..., None], 0, rows)


def _planes(form: Form, x: Array, weight: Array, index: Array) -> Array:
    # Many channels are worth standing together: the gradient of a tap then scatters whole rows.
    across = 2 if x.shape[1] >= _WIDE else 1
    x = jnp.moveaxis(x, 1, across)
    total = jnp.zeros((), x.dtype)
    for t in range(index.shape[1]):
        own, factor = (jnp.expand_dims(v[:, t], across) for v in (index, weight))
        values = jnp.take_along_axis(x, jnp.maximum(own, 0), 3 - across, mode="clip")
        total += jnp.where(own < 0, form.missing, values) * factor
    return jnp.moveaxis(total, across, 1)


def _by_rows(static: tuple[Form, Like], g: Array, weight: Array, index: Array, bounds: Array) -> Array:
    form, like = static
    return transposed(lambda x: _sample(form, x, weight, index, bounds), like, g)


def _by_weight(static: tuple[Form, Like], g: Array, x: Array, index: Array, bounds: Array) -> Array:
    form, like = static
    return transposed(lambda weight: _sample(form, x, weight, index, bounds), like, g)


def _by_weight_of_one(*given: Any) -> tuple[Array]:
    return (_by_weight(*given),)


def _attributes(form: Form) -> dict[str, Any]:
    return form._asdict() | {"missing": np.float64(form.missing), "nothing": np.int64(form.nothing)}


def _attributes_of_gradient(static: tuple[Form, Like]) -> dict[str, Any]:
    return _attributes(static[0])


_run = foreign("jnn_sample", lambda form, *arrays: (_sample(form, *arrays),), _attributes)
_run_by_rows = foreign("jnn_sample_by_rows", lambda static, *arrays: (_by_rows(static, *arrays),), _attributes_of_gradient)
_run_by_weight = foreign("jnn_sample_by_weight", lambda static, *arrays: (_by_weight(static, *arrays),), _attributes_of_gradient)

_bilinear = multilinear(
    lambda form, *arrays: _run(form, *arrays)[0],
    lambda form, g, weight, like, *known: _run_by_rows((form, like), g, weight, *known)[0],
    lambda form, g, x, like, *known: (_run_by_weight if form.weighted else _by_weight_of_one)((form, like), g, x, *known)[0],
)
_shuffled = multilinear(_shuffled_by_rows, lambda groups, g, _: _shuffled(g.shape[-2] // groups, g), by_sample=lambda groups: groups)
