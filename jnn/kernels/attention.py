"""Scaled dot product attention, whole or by blocks of queries."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import checks, dtypes
from .foreign import differentiable, foreign
from .matmul import matmul
from .platform import by_library
from .random import kept
from .softmax import softmax
from .taps import count

Array = jax.Array

# Scores of which more than this many would be held at once are computed by blocks.
_MOST_SCORES = 1 << 26
_BLOCK = 128


class SDPBackend(enum.IntEnum):
    """Ways to compute attention, under torch's names and numbers. Two exist here.

    ``MATH`` holds all scores at once. ``EFFICIENT_ATTENTION`` computes them again for each block of queries in the backward
    pass, so that memory grows with one sequence length and not with the product of two.
    """

    ERROR = -1
    MATH = 0
    FLASH_ATTENTION = 1
    EFFICIENT_ATTENTION = 2
    CUDNN_ATTENTION = 3
    OVERRIDEABLE = 4


HERE = (SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION)
_allowed: ContextVar[tuple[SDPBackend, ...]] = ContextVar("jnn_sdpa_backends", default=HERE)
_ordered: ContextVar[bool] = ContextVar("jnn_sdpa_ordered", default=False)


@contextmanager
def sdpa_kernel(backends: list[SDPBackend] | SDPBackend, set_priority: bool = False) -> Iterator[None]:
    """Allow only these ways to compute attention; the first of them that exists is taken when ``set_priority``.

    Under jit the choice is made while tracing: use it inside the compiled function.
    """
    given = [backends] if isinstance(backends, SDPBackend) else backends
    ok = isinstance(given, list) and all(isinstance(b, SDPBackend) for b in given)
    checks.require(ok, "sdpa_kernel", "backends must be an SDPBackend or a list of them", AssertionError, backends=backends)
    tokens = _allowed.set(tuple(dict.fromkeys(given))), _ordered.set(set_priority)
    try:
        yield
    finally:
        _allowed.reset(tokens[0])
        _ordered.reset(tokens[1])


def choose(who: str, q: Array, k: Array) -> SDPBackend:
    """The backend for these arrays among those that the running :func:`sdpa_kernel` allows."""
    able = [b for b in _allowed.get() if b in HERE]
    checks.require(able, who, "none of the allowed backends exists here", RuntimeError, allowed=[b.name for b in _allowed.get()])
    if len(able) == 1 or _ordered.get():
        return able[0]
    return SDPBackend.EFFICIENT_ATTENTION if count((*q.shape[:-1], k.shape[-2])) > _MOST_SCORES else SDPBackend.MATH


def _scores(q: Array, k: Array, bias: Array | None, scale: float) -> Array:
    """``scale q k^T + bias``, in float32 for half types."""
    scores = matmul(q * scale, jnp.swapaxes(k, -1, -2), dtypes.accumulator(q.dtype))
    return scores if bias is None else scores + jnp.broadcast_to(bias, scores.shape)


def probabilities(q: Array, k: Array, bias: Array | None, scale: float) -> Array:
    """Softmax of ``scale q k^T + bias`` over the keys, in float32 for half types. A row of nothing but ``-inf`` gives NaN."""
    scores = _scores(q, k, bias, scale)
    return softmax(scores) if scores.shape[-1] else scores


def drop(x: Array, rate: float, key: Array | None) -> Array:
    """``x`` with a share ``rate`` of its elements zeroed and the others scaled; all of it without a key."""
    return _masked(x, rate, None if key is None or rate == 0 else kept(key, rate, x.shape))


def _masked(x: Array, rate: float, mask: Array | None) -> Array:
    if mask is None:
        return x
    return jnp.where(mask, x / (1 - rate), 0) if rate < 1 else jnp.zeros_like(x)


def _attend(
    q: Array, k: Array, v: Array, bias: Array | None, first: Array | int, causal: bool, scale: float, rate: float, mask: Array | None
) -> Array:
    """Attention of queries of which the first stands at position ``first``; weights that ``mask`` has not are dropped."""
    # The causal mask leaves each query its own key: only a mask that is given can bar all of them.
    barred = bias is not None
    if causal:
        ahead = np.arange(k.shape[-2])[None] > first + np.arange(q.shape[-2])[:, None]
        bar = jnp.where(ahead, -jnp.inf, 0.0).astype(q.dtype)
        bias = bar if bias is None else bias + jnp.broadcast_to(bar, jnp.broadcast_shapes(bias.shape, bar.shape))
    scores = _scores(q, k, bias, scale)
    if not scores.shape[-1]:
        return jnp.matmul(scores.astype(v.dtype), v)
    most = lax.stop_gradient(scores.max(-1, keepdims=True))
    # A query that is barred from every key gets zeros. The result is divided and not the weights: it has fewer elements.
    weights = jnp.exp(scores - jnp.where(most == -jnp.inf, 0, most) if barred else scores - most)
    total = weights.sum(-1, keepdims=True)
    y = matmul(_masked(weights, rate, mask).astype(v.dtype), v, total.dtype)
    return (y / (jnp.where(total == 0, 1, total) if barred else total)).astype(v.dtype)


def attention(
    q: Array, k: Array, v: Array, bias: Array | None, key: Array | None, *, causal: bool, scale: float, rate: float, backend: SDPBackend
) -> Array:
    """``softmax(scale q k^T + bias) v`` over the last two dimensions.

    Args:
        bias: added to the scores; of two dimensions at least.
        key: feeds the dropout of weights; none are dropped without.
        causal: whether a query sees only keys of positions up to its own.
        rate: the probability of a weight being dropped.
    """
    key = key if rate > 0 else None
    whole = backend is SDPBackend.MATH or q.shape[-2] <= _BLOCK
    if by_library() and jnp.issubdtype(q.dtype, np.floating) and (key is None or (whole and rate < 1)):
        return _by_library(_Form(causal, scale, rate, backend, bias is not None, key is not None), q, k, v, bias, key)
    if whole:
        return _attend(q, k, v, bias, 0, causal, scale, rate, _mask(q, k, rate, key))
    return _by_blocks(q, k, v, bias, key, causal, scale, rate)


def _mask(q: Array, k: Array, rate: float, key: Array | None) -> Array | None:
    """Which of the weights are kept."""
    lead = jnp.broadcast_shapes(q.shape[:-2], k.shape[:-2])
    return None if key is None else kept(key, rate, (*lead, q.shape[-2], k.shape[-2]))


def _by_blocks(q: Array, k: Array, v: Array, bias: Array | None, key: Array | None, causal: bool, scale: float, rate: float) -> Array:
    steps = q.shape[-2]
    count = -(-steps // _BLOCK)

    def blocks(x: Array) -> Array:
        """(..., L, E) as (count, ..., block, E), filled up with zeros."""
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, count * _BLOCK - steps), (0, 0)])
        return jnp.moveaxis(x.reshape(*x.shape[:-2], count, _BLOCK, x.shape[-1]), -3, 0)

    by_query = bias is not None and bias.shape[-2] != 1

    @jax.checkpoint
    def block(at: tuple[Array, Array, Array | None]) -> Array:
        i, q, part = at
        own = None if key is None else jax.random.fold_in(key, i)
        return _attend(q, k, v, part if by_query else bias, i * _BLOCK, causal, scale, rate, _mask(q, k, rate, own))

    out = jnp.moveaxis(lax.map(block, (jnp.arange(count), blocks(q), blocks(bias) if by_query and bias is not None else None)), 0, -3)
    return out.reshape(*out.shape[:-3], count * _BLOCK, out.shape[-1])[..., :steps, :]


class _Form(NamedTuple):
    causal: bool
    scale: float
    rate: float
    backend: SDPBackend
    biased: bool
    masked: bool


def _by_library(form: _Form, q: Array, k: Array, v: Array, bias: Array | None, key: Array | None) -> Array:
    """:func:`attention` of arrays with equal leading dimensions, a bias with a number for each key, and a mask by key and query."""
    dtype = dtypes.accumulator(q.dtype)
    lead = jnp.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    arrays = [jnp.broadcast_to(x, (*lead, *x.shape[-2:])).astype(dtype) for x in (q, k, v)]
    added = jnp.zeros(1, dtype) if bias is None else jnp.broadcast_to(bias, (*bias.shape[:-1], k.shape[-2])).astype(dtype)
    mask = jnp.ones(1, bool) if key is None else kept(key, form.rate, (*lead, k.shape[-2], q.shape[-2]))
    return _library(form, *arrays, added, mask)[0].astype(q.dtype)


def _definition(form: _Form, q: Array, k: Array, v: Array, bias: Array, mask: Array) -> tuple[Array]:
    own = bias if form.biased else None
    if form.backend is SDPBackend.MATH or q.shape[-2] <= _BLOCK:
        return (_attend(q, k, v, own, 0, form.causal, form.scale, form.rate, jnp.swapaxes(mask, -1, -2) if form.masked else None),)
    return (_by_blocks(q, k, v, own, None, form.causal, form.scale, 0.0),)


def _with_logs(form: _Form, q: Array, k: Array, v: Array, bias: Array, mask: Array) -> tuple[Array, Array]:
    """The result, and by query the logarithm of the sum of its scores' exponentials: 0 where there is nothing to sum up."""
    scores = _scores(q, k, bias if form.biased else None, form.scale)
    if form.causal:
        scores = jnp.where(np.tri(*scores.shape[-2:], dtype=bool), scores, -jnp.inf)
    logs = jax.nn.logsumexp(scores, -1)
    return *_definition(form, q, k, v, bias, mask), jnp.where(logs == -jnp.inf, 0, logs)


def _slopes(form: _Form, g: Array, y: Array, logs: Array, *arrays: Array) -> tuple[Array, ...]:
    q, k, v, *known = arrays
    return jax.vjp(lambda q, k, v: _definition(form, q, k, v, *known), q, k, v)[1]((g,))


def _slopes_and_of_scores(form: _Form, g: Array, y: Array, logs: Array, *arrays: Array) -> tuple[Array, ...]:
    q, k, v, bias, mask = arrays
    each = jnp.broadcast_to(bias, (*logs.shape, k.shape[-2]))
    return jax.vjp(lambda q, k, v, each: _definition(form, q, k, v, each, mask), q, k, v, each)[1]((g,))


def _attributes(form: _Form) -> dict[str, Any]:
    return {"causal": form.causal, "scale": np.float64(form.scale), "rate": np.float64(form.rate)}


_run = foreign("jnn_attention", _with_logs, _attributes)
_run_gradient = foreign("jnn_attention_gradient", _slopes, _attributes)
_run_gradient_of_scores = foreign("jnn_attention_gradient", _slopes_and_of_scores, _attributes)


def _forward(form: _Form, *arrays: Array) -> tuple[tuple[Array], tuple[Array, Array]]:
    y, logs = _run(form, *arrays)
    return (y,), (y, logs)


def _backward(
    form: _Form, cotangents: tuple[Array], residuals: tuple[Array, Array], arrays: tuple[Array, ...], wanted: tuple[bool, ...]
) -> tuple[Any, ...]:
    if not wanted[3]:
        return *_run_gradient(form, *cotangents, *residuals, *arrays), None
    q, k, v, bias, mask = arrays
    scores = (*q.shape[:-1], k.shape[-2])
    if form.backend is SDPBackend.MATH or bias.shape == scores:
        *slopes, of_scores = _run_gradient_of_scores(form, *cotangents, *residuals, *arrays)
        return *slopes, *jax.linear_transpose(lambda bias: jnp.broadcast_to(bias, scores), bias)(of_scores)
    # All slopes at once would be what this backend is there to avoid.
    slopes = _run_gradient(form, *cotangents, *residuals, *arrays)
    return *slopes, *jax.vjp(lambda bias: _definition(form, q, k, v, bias, mask), bias)[1](cotangents)


_library = differentiable(_definition, _forward, _backward)
