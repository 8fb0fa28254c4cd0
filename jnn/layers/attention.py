"""Attention: the scaled dot product, and with many heads."""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core import checks, dtypes, rng
from ..core.function import function
from ..core.initial import xavier_normal, xavier_uniform
from ..core.spec import Layer, layer, param
from ..kernels import attention as kernel
from .linear import Linear, linear

Array = jax.Array


class CausalVariant(enum.IntEnum):
    """Where the diagonal of a causal mask of unequal lengths begins or ends."""

    UPPER_LEFT = 1
    LOWER_RIGHT = 2


@dataclasses.dataclass(frozen=True)
class CausalBias:
    """A causal mask as an ``attn_mask`` of :func:`scaled_dot_product_attention`, made when it is needed.

    Args:
        variant: whether the first query sees the first key, or the last query the last key.
        seq_len_q: number of queries.
        seq_len_kv: number of keys.
    """

    variant: CausalVariant
    seq_len_q: int
    seq_len_kv: int

    def mask(self) -> np.ndarray:
        """True where a query sees a key, (seq_len_q, seq_len_kv)."""
        offset = self.seq_len_kv - self.seq_len_q if self.variant == CausalVariant.LOWER_RIGHT else 0
        return np.tri(self.seq_len_q, self.seq_len_kv, offset, dtype=bool)


def _takes_random_key(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Let ``key=`` be the random key as in other functions, when the array of that name is given by position."""

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        key = kwargs.get("key")
        if len(args) > 1 and key is not None:
            checks.require("dropout_key" not in kwargs, fn, "the random key is given twice", TypeError)
            kwargs["dropout_key"] = kwargs.pop("key")
        return fn(*args, **kwargs)

    return call


def _additive(who: str, name: str, mask: Array | None, dtype: Any, *, shown: bool, exc: type[Exception] = RuntimeError) -> Array | None:
    """A mask as what is added to scores; in a boolean one, ``shown`` is the value of what is seen."""
    if mask is None or jnp.issubdtype(mask.dtype, np.floating):
        return mask
    checks.require(mask.dtype == bool, who, f"{name} must be boolean or floating point", exc, **{name: mask})
    return jnp.where(mask == shown, 0, -jnp.inf).astype(dtype)


@function
def _attend(query: Array, key: Array, value: Array, bias: Array | None, random: Array | None, **how: Any) -> Array:
    return kernel.attention(query, key, value, bias, random, **how)


@_takes_random_key
@function(jit=False)
def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | CausalBias | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    dropout_key: Array | None = None,
) -> Array:
    """``softmax(scale Q K^T + mask) V``.

    A query that may see no key gives zeros. :func:`jnn.attention.sdpa_kernel` chooses how it is computed.

    Shape: query (N, ..., Hq, L, E), key (N, ..., H, S, E), value (N, ..., H, S, Ev); output (N, ..., Hq, L, Ev).

    Args:
        attn_mask: broadcastable to (N, ..., L, S): boolean, True where a query sees a key, or added to the scores.
        dropout_p: probability of dropping an attention weight; in evaluation pass 0.
        is_causal: whether query i sees keys up to i only.
        scale: what the product is multiplied by; 1 / sqrt(E) when None.
        enable_gqa: whether Hq may be a multiple of H: each head of keys then serves that many of queries in a row.
        dropout_key: feeds the dropout; may be called ``key`` where the arrays are given by position.

    Raises:
        RuntimeError: dtypes or shapes do not fit, or both ``attn_mask`` and ``is_causal`` are given.

    Reference: Vaswani et al., Attention is all you need, 2017.
    """
    who = "scaled_dot_product_attention"
    arrays = {"query": query, "key": key, "value": value}
    for name, x in arrays.items():
        checks.require(x.ndim >= 2, who, f"{name} must have at least two dimensions", RuntimeError, **{name: x})
        checks.floating(who, name, x)
    checks.same_dtype(who, **arrays)
    checks.require(0 <= dropout_p <= 1, who, "dropout_p must be in [0, 1]", RuntimeError, dropout_p=dropout_p)
    if isinstance(attn_mask, CausalBias):
        checks.require(not is_causal, who, "a CausalBias and is_causal=True exclude each other", dropout_p=dropout_p)
        attn_mask = jnp.asarray(attn_mask.mask())
    checks.require(not is_causal or attn_mask is None, who, "attn_mask and is_causal=True exclude each other", RuntimeError)
    if enable_gqa:
        key, value = (_repeat_heads(who, query, x) for x in (key, value))
    bias = _additive(who, "attn_mask", attn_mask, query.dtype, shown=True)
    if bias is not None:
        ok = bias.dtype in (query.dtype, np.float32)
        checks.require(ok, who, "attn_mask must be boolean, or of query's dtype", RuntimeError, attn_mask=bias, query=query)
        bias = jnp.atleast_2d(bias)
    _check_shapes(who, query, key, value, bias)
    return _attend(
        query,
        key,
        value,
        bias,
        rng.next_key(who, dropout_key) if dropout_p > 0 else None,
        causal=is_causal,
        scale=1 / math.sqrt(max(query.shape[-1], 1)) if scale is None else float(scale),
        rate=float(dropout_p),
        backend=kernel.choose(who, query, key),
    )


def _repeat_heads(who: str, query: Array, x: Array) -> Array:
    checks.require(query.ndim >= 3 and x.ndim >= 3, who, "enable_gqa needs a dimension of heads", RuntimeError, query=query, key=x)
    heads, own = query.shape[-3], x.shape[-3]
    ok = own > 0 and heads % own == 0
    checks.require(ok, who, "heads of key and value must divide those of query", RuntimeError, query_heads=heads, heads=own)
    return jnp.repeat(x, heads // own, -3)


def _check_shapes(who: str, query: Array, key: Array, value: Array, bias: Array | None) -> None:
    shapes = {name: tuple(x.shape) for name, x in {"query": query, "key": key, "value": value, "attn_mask": bias}.items() if x is not None}
    ok = query.shape[-1] == key.shape[-1] and key.shape[-2] == value.shape[-2]
    scores = (query.shape[-2], key.shape[-2])
    try:
        lead = jnp.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
        ok &= bias is None or jnp.broadcast_shapes(bias.shape, (*lead, *scores)) == (*lead, *scores)
    except ValueError:
        ok = False
    checks.require(ok, who, "shapes must be (..., L, E), (..., S, E), (..., S, Ev) and, of attn_mask, (..., L, S)", RuntimeError, **shapes)


class _Heads(NamedTuple):
    """What multi-head attention needs beside its arrays and masks."""

    who: str
    num_heads: int
    add_zero_attn: bool
    dropout: float
    training: bool
    need_weights: bool
    average: bool
    is_causal: bool


def _split(x: Array, heads: int) -> Array:
    """(N, L, H * D) as (N, H, L, D)."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def _masks(how: _Heads, q: Array, src: int, key_padding_mask: Array | None, attn_mask: Array | None, extra: int) -> Array | None:
    """Both masks as one, added to the scores (N, H, L, S); ``extra`` keys beyond the given ones are seen by all."""
    batch, heads, tgt = q.shape[:3]
    bias = _additive(how.who, "attn_mask", attn_mask, q.dtype, shown=False, exc=AssertionError)
    if bias is not None:
        wanted = (tgt, src) if bias.ndim == 2 else (batch * heads, tgt, src)
        checks.require(bias.shape == wanted, how.who, f"attn_mask must have shape {wanted}", RuntimeError, attn_mask=bias)
        bias = bias.reshape(-1 if bias.ndim == 2 else batch, 1 if bias.ndim == 2 else heads, tgt, src)
    padding = _additive(how.who, "key_padding_mask", key_padding_mask, q.dtype, shown=False, exc=AssertionError)
    if padding is not None:
        checks.require(
            padding.shape == (batch, src), how.who, f"key_padding_mask must have shape {(batch, src)}", AssertionError, got=padding
        )
        padding = padding[:, None, None]
        bias = padding if bias is None else bias + padding
    return bias if bias is None or not extra else jnp.pad(bias, [(0, 0)] * 3 + [(0, extra)])


def _many_heads(
    how: _Heads,
    q: Array,
    k: Array,
    v: Array,
    extra_kv: tuple[Array, Array] | None,
    key_padding_mask: Array | None,
    attn_mask: Array | None,
    static: tuple[Array | None, Array | None] = (None, None),
) -> tuple[Array, Array | None]:
    """Attention of projected, batch-first arrays (N, L, E), before the output projection; and the weights if they are needed."""
    batch, tgt, embed = q.shape
    src = k.shape[1] if static[0] is None else static[0].shape[1]
    if extra_kv is not None:
        k, v = (
            jnp.concatenate([x, jnp.broadcast_to(b.reshape(1, 1, -1), (batch, 1, embed))], 1) for x, b in zip((k, v), extra_kv, strict=True)
        )
    q, k, v = (_split(x, how.num_heads) for x in (q, k, v))
    k, v = (x if s is None else s.reshape(batch, how.num_heads, *s.shape[1:]) for x, s in zip((k, v), static, strict=True))
    if how.add_zero_attn:
        k, v = (jnp.pad(x, [(0, 0), (0, 0), (0, 1), (0, 0)]) for x in (k, v))
    hinted = how.is_causal and key_padding_mask is None and not how.need_weights
    if hinted and attn_mask is not None:
        ok = attn_mask.shape[-2:] == (tgt, src)
        checks.require(ok, how.who, f"attn_mask must have shape {(tgt, src)}", RuntimeError, attn_mask=attn_mask)
    bias = _masks(how, q, src, key_padding_mask, None if hinted else attn_mask, (extra_kv is not None) + how.add_zero_attn)
    rate = how.dropout if how.training else 0.0
    if not how.need_weights:
        y, weights = scaled_dot_product_attention(q, k, v, bias, rate, hinted), None
    else:
        random = rng.next_key(how.who) if rate > 0 else None
        weights = kernel.drop(kernel.probabilities(q, k, bias, 1 / math.sqrt(q.shape[-1])), rate, random).astype(v.dtype)
        y = jnp.matmul(weights, v)
        weights = weights.mean(1) if how.average else weights
    return y.swapaxes(1, 2).reshape(batch, tgt, embed), weights


def _project(query: Array, key: Array, value: Array, weight: Array, bias: Array | None) -> tuple[Array, Array, Array]:
    """The three projections by a packed weight, in one matmul for self-attention and two where key is value."""
    if query is key and key is value:
        q, k, v = jnp.split(linear(query, weight, bias), 3, -1)
        return q, k, v
    e = query.shape[-1]
    if key is value:
        k, v = jnp.split(linear(key, weight[e:], None if bias is None else bias[e:]), 2, -1)
        return linear(query, weight[:e], None if bias is None else bias[:e]), k, v
    return _project_apart(query, key, value, tuple(jnp.split(weight, 3)), bias)


def _project_apart(query: Array, key: Array, value: Array, weights: Any, bias: Array | None) -> tuple[Array, Array, Array]:
    biases = (None,) * 3 if bias is None else jnp.split(bias, 3)
    q, k, v = (linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
    return q, k, v


def _check_inputs(
    who: str, query: Array, key: Array, value: Array, embed_dim: int, key_padding_mask: Any, attn_mask: Any, is_causal: bool
) -> bool:
    """Whether the input has a batch dimension."""
    checks.rank(who, query, (2, 3), AssertionError, "query")
    for name, x in {"key": key, "value": value}.items():
        checks.rank(who, x, (query.ndim,), AssertionError, name)
    if key_padding_mask is not None:
        checks.rank(who, key_padding_mask, (query.ndim - 1,), AssertionError, "key_padding_mask")
    if attn_mask is not None:
        checks.rank(who, attn_mask, (2, 3), AssertionError, "attn_mask")
    checks.require(
        query.shape[-1] == embed_dim, who, "the last dimension of query must be embed_dim", AssertionError, query=query, embed_dim=embed_dim
    )
    same = key.shape[:-1] == value.shape[:-1]
    checks.require(same, who, "key and value must have equal leading dimensions", AssertionError, key=key, value=value)
    checks.require(
        not is_causal or attn_mask is not None, who, "is_causal says that attn_mask is causal, so it must be given", RuntimeError
    )
    return query.ndim == 3


def _lay(batched: bool, batch_first: bool, *arrays: Array) -> tuple[Array, ...]:
    """Arrays batch first, or back; arrays that are one stay one."""
    if batched and batch_first:
        return arrays
    laid: dict[int, Array] = {}
    for x in arrays:
        laid.setdefault(id(x), x.swapaxes(0, 1) if batched else x[None])
    return tuple(laid[id(x)] for x in arrays)


@function(jit=False)
def _array(x: Any) -> Any:
    return x


@_takes_random_key
@function(jit=False)
def multi_head_attention_forward(
    query: Array,
    key: Array,
    value: Array,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Array | None,
    in_proj_bias: Array | None,
    bias_k: Array | None,
    bias_v: Array | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Array,
    out_proj_bias: Array | None,
    training: bool = True,
    key_padding_mask: Array | None = None,
    need_weights: bool = True,
    attn_mask: Array | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Array | None = None,
    k_proj_weight: Array | None = None,
    v_proj_weight: Array | None = None,
    static_k: Array | None = None,
    static_v: Array | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
    *,
    dropout_key: Array | None = None,
) -> tuple[Array, Array | None]:
    """What :class:`MultiheadAttention` computes, with its arrays given; sequence first.

    Args:
        embed_dim_to_check: what the last dimension of query must be.
        use_separate_proj_weight: whether the three ``*_proj_weight`` are used in place of ``in_proj_weight``.
        static_k: (N * num_heads, S, E / num_heads), used in place of the projected key; ``static_v`` likewise.
        dropout_key: feeds the dropout; may be called ``key`` where the arrays are given by position.

    The other arguments are those of :class:`MultiheadAttention` and of its call.
    """
    who = "multi_head_attention_forward"
    batched = _check_inputs(who, query, key, value, embed_dim_to_check, key_padding_mask, attn_mask, is_causal)
    checks.require(embed_dim_to_check % num_heads == 0, who, "num_heads must divide embed_dim", AssertionError, num_heads=num_heads)
    separate = (q_proj_weight, k_proj_weight, v_proj_weight)
    given = all(w is not None for w in separate) if use_separate_proj_weight else in_proj_weight is not None
    checks.require(given, who, "the weights of the input projection must be given", AssertionError, separate=use_separate_proj_weight)
    checks.require((bias_k is None) == (bias_v is None), who, "bias_k and bias_v must be given together", AssertionError)
    fixed = static_k is not None or static_v is not None
    checks.require(bias_k is None or not fixed, who, "bias_k cannot be added to a static key", AssertionError)
    query, key, value = _lay(batched, False, query, key, value)
    if not batched:
        key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
    q, k, v = (
        _project_apart(query, key, value, separate, in_proj_bias)
        if use_separate_proj_weight
        else _project(query, key, value, in_proj_weight, in_proj_bias)  # type: ignore[arg-type]
    )
    for name, x in {"static_k": static_k, "static_v": static_v}.items():
        wanted = (q.shape[0] * num_heads, q.shape[-1] // num_heads)
        ok = x is None or (x.shape[0], x.shape[-1]) == wanted
        checks.require(ok, who, f"{name} must have shape ({wanted[0]}, S, {wanted[1]})", AssertionError, **{name: x})
    how = _Heads(who, num_heads, add_zero_attn, dropout_p, training, need_weights, average_attn_weights, is_causal)
    extra = None if bias_k is None or bias_v is None else (bias_k, bias_v)
    stream = rng.KeyStream(dropout_key)
    if dropout_key is None:
        y, weights = _many_heads(how, q, k, v, extra, key_padding_mask, attn_mask, (static_k, static_v))
    else:
        with rng.scope(stream, ""):
            y, weights = _many_heads(how, q, k, v, extra, key_padding_mask, attn_mask, (static_k, static_v))
    y = linear(y, out_proj_weight, out_proj_bias)
    return (y.swapaxes(0, 1), weights) if batched else (y[0], None if weights is None else weights[0])


@layer
class NonDynamicallyQuantizableLinear(Linear):
    """:class:`Linear` with a bias of zeros at first: the output projection of :class:`MultiheadAttention`."""

    def setup(self, key: Array) -> dict[str, Array | None]:
        state = super().setup(key)
        return state | {"bias": None if state["bias"] is None else jnp.zeros_like(state["bias"])}


@layer
class MultiheadAttention(Layer):
    """``out_proj(concat(head_1, ..., head_h))``, ``head_i = softmax(Q_i K_i^T / sqrt(E / h)) V_i``.

    Q, K and V are projections of query, key and value, split into h parts.

    Shape: query (L, N, embed_dim), key (S, N, kdim), value (S, N, vdim), or batch first, or without N; ``key_padding_mask`` (N, S);
        ``attn_mask`` (L, S) or (N * num_heads, L, S). Output like query, and weights (N, L, S), or (N, num_heads, L, S) when they
        are not averaged, or None.

    Args:
        embed_dim: features of query and output.
        num_heads: how many heads; divides embed_dim.
        dropout: probability of dropping an attention weight in training.
        bias: whether the projections have biases.
        add_bias_kv: whether a learned key and value are appended to the sequences.
        add_zero_attn: whether a key and value of zeros are appended.
        kdim: features of key; embed_dim when None.
        vdim: features of value; embed_dim when None.
        batch_first: whether the batch comes before the sequence.
        device: where the parameters live.
        dtype: of the parameters; float32 when None.

    ``forward`` takes boolean masks, True where a key is not seen, or masks that are added to the scores. ``is_causal`` says
    that ``attn_mask`` is the causal mask, which need then not be read. With ``need_weights=False`` it computes
    :func:`scaled_dot_product_attention`, for which a query that sees no key gives zeros; with the weights it gives NaN.

    State: ``in_proj_weight`` (3 * embed_dim, embed_dim), or where kdim or vdim differ ``q_proj_weight``, ``k_proj_weight``,
        ``v_proj_weight`` (embed_dim, dim), Glorot uniform; ``in_proj_bias`` (3 * embed_dim,) zeros; ``bias_k`` and ``bias_v``
        (1, 1, embed_dim), Glorot normal; and the child ``out_proj``, which is called, so that hooks on it run.

    Raises:
        AssertionError: num_heads does not divide embed_dim, or shapes do not fit.

    Reference: Vaswani et al., Attention is all you need, 2017.
    """

    embed_dim: int
    num_heads: int
    dropout: float = 0.0
    bias: bool = True
    add_bias_kv: bool = False
    add_zero_attn: bool = False
    kdim: int | None = None
    vdim: int | None = None
    batch_first: bool = False
    device: Any = None
    dtype: Any = None
    in_proj_weight: Array | None = param()
    q_proj_weight: Array | None = param()
    k_proj_weight: Array | None = param()
    v_proj_weight: Array | None = param()
    in_proj_bias: Array | None = param()
    bias_k: Array | None = param()
    bias_v: Array | None = param()

    def validate(self) -> None:
        checks.integer(self, "embed_dim", self.embed_dim, 1)
        checks.integer(self, "num_heads", self.num_heads, 1)
        checks.require(
            self.embed_dim % self.num_heads == 0,
            self,
            "num_heads must divide embed_dim",
            AssertionError,
            embed_dim=self.embed_dim,
            num_heads=self.num_heads,
        )
        self._set(kdim=self.embed_dim if self.kdim is None else self.kdim, vdim=self.embed_dim if self.vdim is None else self.vdim)

    @property
    def head_dim(self) -> int:
        """Features of a head."""
        return self.embed_dim // self.num_heads

    @property
    def _qkv_same_embed_dim(self) -> bool:
        return self.kdim == self.vdim == self.embed_dim

    def setup(self, key: Array) -> dict[str, Array | None]:
        e, dtype = self.embed_dim, dtypes.parameter(self, self.dtype)
        keys = iter(jax.random.split(key, 5))
        names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias", "bias_k", "bias_v")
        state: dict[str, Array | None] = dict.fromkeys(names)
        shapes = {"in_proj_weight": (3 * e, e)}
        if not self._qkv_same_embed_dim:
            shapes = {"q_proj_weight": (e, e), "k_proj_weight": (e, self.kdim), "v_proj_weight": (e, self.vdim)}
        state |= {name: xavier_uniform(next(keys), shape, dtype) for name, shape in shapes.items()}
        if self.bias:
            state["in_proj_bias"] = jnp.zeros((3 * e,), dtype)
        if self.add_bias_kv:
            state |= {name: xavier_normal(next(keys), (1, 1, e), dtype) for name in ("bias_k", "bias_v")}
        return state

    def parts(self) -> dict[str, Layer]:
        return {"out_proj": NonDynamicallyQuantizableLinear(self.embed_dim, self.embed_dim, self.bias, self.device, self.dtype)}

    def compute(
        self,
        s: Any,
        query: Array,
        key: Array,
        value: Array,
        key_padding_mask: Array | None = None,
        need_weights: bool = True,
        attn_mask: Array | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Array, Array | None]:
        who = type(self).__name__
        batched = _check_inputs(who, query, key, value, self.embed_dim, key_padding_mask, attn_mask, is_causal)
        query, key, value = _lay(batched, self.batch_first, query, key, value)
        if key_padding_mask is not None and not batched:
            key_padding_mask = key_padding_mask[None]
        bias = _array(s.in_proj_bias)
        if self._qkv_same_embed_dim:
            q, k, v = _project(query, key, value, _array(s.in_proj_weight), bias)
        else:
            q, k, v = _project_apart(query, key, value, (s.q_proj_weight, s.k_proj_weight, s.v_proj_weight), bias)
        extra = (_array(s.bias_k), _array(s.bias_v)) if self.add_bias_kv else None
        how = _Heads(who, self.num_heads, self.add_zero_attn, self.dropout, s.training, need_weights, average_attn_weights, is_causal)
        y, weights = _many_heads(how, q, k, v, extra, key_padding_mask, attn_mask)
        y = s.out_proj(y)
        if not batched:
            return y[0], None if weights is None else weights[0]
        return (y if self.batch_first else y.swapaxes(0, 1)), weights
