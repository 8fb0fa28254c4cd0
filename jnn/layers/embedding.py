"""Rows of a table by index, alone or in bags."""

from __future__ import annotations

import warnings
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..core import checks, dtypes
from ..core.derivatives import straight_through
from ..core.function import function
from ..core.spec import Constant, Layer, config, layer, param
from ..kernels import sampling
from ..kernels.foreign import takes
from .distance import vector_norm

Array = jax.Array


def _padding(who: object, padding_idx: int | None, rows: int, exc: type[Exception] = AssertionError) -> int | None:
    """``padding_idx`` counted from the front."""
    if padding_idx is None:
        return None
    checks.require(-rows <= padding_idx < rows, who, "padding_idx must be within num_embeddings", exc, padding_idx=padding_idx, rows=rows)
    return padding_idx % rows


def _require_table(who: str, input: Array, weight: Array, exc: type[Exception]) -> None:
    checks.require(jnp.issubdtype(input.dtype, np.integer), who, "input must be integers", RuntimeError, dtype=input.dtype)
    checks.rank(who, weight, (2,), exc, name="weight")


def _rows(index: Array, weight: Array, max_norm: float | None, norm_type: float, scale_grad_by_freq: bool) -> Array:
    """The rows at ``index``, NaN where it is out of range, no longer than ``max_norm``, in at least float32."""
    rows = sampling.rows(weight, index)
    if max_norm is not None:
        # Derivatives pass the shortening by, as they do in torch, where it is done to the table and not recorded.
        fixed = jax.lax.stop_gradient(rows).astype(dtypes.accumulator(rows.dtype))
        norm = vector_norm(fixed, norm_type, -1, keepdims=True)
        rows = straight_through(jnp.where(norm > max_norm, fixed * (max_norm / (norm + 1e-7)), fixed).astype(rows.dtype), rows)
    if scale_grad_by_freq:
        count = jnp.zeros(len(weight), np.int32).at[index].add(1)[index]
        rows = straight_through(rows, rows / count[..., None].astype(rows.dtype))
    return rows


def _known_rows(input: Array, weight: Array, *args: Any, **kwargs: Any) -> None:
    if weight.ndim == 2:
        checks.index_range("embedding", "input", input, weight.shape[0])


@function(values=_known_rows)
def embedding(
    input: Array,
    weight: Array,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Array:
    """The rows of ``weight`` at ``input``.

    Shape: input (*), weight (V, D); output (*, D).

    Args:
        padding_idx: a row that gets no gradient; negative counts from the end.
        max_norm: a looked-up row with a larger norm is shortened to it; derivatives pass this by.
        norm_type: the p of that norm.
        scale_grad_by_freq: whether the gradient of a row is divided by how often it is looked up in this call.
        sparse: accepted; the gradient is dense.

    Raises:
        IndexError: an index is not in [0, V). Traced, it gives a row of NaN.
        RuntimeError: ``input`` is not of integers, or ``weight`` has not two dimensions.
        AssertionError: ``padding_idx`` is not in [-V, V).

    Differs from torch: ``max_norm`` leaves ``weight`` itself as it is, in every face: the output is the same, but an
        optimiser steps from the rows as they were before shortening. Gradients are dense also for ``sparse=True``.
    """
    _require_table("embedding", input, weight, RuntimeError)
    padding_idx = _padding("embedding", padding_idx, weight.shape[0])
    rows = _rows(input, weight, max_norm, norm_type, scale_grad_by_freq)
    if padding_idx is None:
        return rows
    return jnp.where((input == padding_idx)[..., None], jax.lax.stop_gradient(rows), rows)


@function(jit=False)
def embedding_bag(
    input: Array,
    weight: Array,
    offsets: Array | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Array | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Array:
    """The sum, mean or largest of the rows of ``weight`` in each bag of ``input``; 0 for an empty bag.

    Shape: input (B, L) for bags of one length, or (n,) with offsets (B,) or, with the last, (B + 1,); weight (V, D);
        per_sample_weights as input; output (B, D).

    Args:
        offsets: where each bag starts in ``input`` of one dimension.
        mode: "sum", "mean" or "max".
        per_sample_weights: factors of the rows, for "sum" only.
        include_last_offset: whether the last of ``offsets`` is where the last bag ends.
        padding_idx: an index that belongs to no bag; negative counts from the end.
        max_norm, norm_type, scale_grad_by_freq, sparse: as :func:`embedding`.

    Raises:
        ValueError: the shapes of input, weight, offsets and per_sample_weights do not fit, or ``mode`` is unknown or cannot.
        RuntimeError: an index or an offset is out of range (traced: NaN), or a dtype is wrong.
        NotImplementedError: ``per_sample_weights`` with another mode than "sum".

    Differs from torch: as :func:`embedding`. NaN wins a maximum wherever it stands. ``scale_grad_by_freq`` divides by each
        row's own count, where torch's CPU kernel takes that of another row unless all counts are equal.
    """
    who = "embedding_bag"
    if jnp.issubdtype(weight.dtype, np.integer) and jnp.issubdtype(input.dtype, np.floating):
        warnings.warn(f"{who}: (weight, input) is the deprecated order of arguments, pass (input, weight)", UserWarning, stacklevel=3)
        input, weight = weight, input
    _require_table(who, input, weight, ValueError)
    checks.floating(who, "weight", weight)
    checks.choice(who, "mode", mode, ("sum", "mean", "max"))
    refused = mode == "max" and (scale_grad_by_freq or sparse)
    checks.require(not refused, who, "mode 'max' takes neither scale_grad_by_freq nor sparse", mode=mode)
    if per_sample_weights is not None:
        alike = per_sample_weights.shape == input.shape
        checks.require(alike, who, "per_sample_weights must have the shape of input", per_sample_weights=per_sample_weights, input=input)
        checks.require(mode == "sum", who, "per_sample_weights needs mode 'sum'", NotImplementedError, mode=mode)
        checks.same_dtype(who, weight=weight, per_sample_weights=per_sample_weights)
    _require_bags(who, input, offsets, include_last_offset)
    checks.index_range(who, "input", input, weight.shape[0], exc=RuntimeError)
    padding_idx = _padding(who, padding_idx, weight.shape[0], RuntimeError)
    lookup = (max_norm, norm_type, scale_grad_by_freq)
    return _bags(input, weight, offsets, per_sample_weights, padding_idx, mode, include_last_offset, lookup)


def _require_bags(who: str, input: Array, offsets: Array | None, include_last_offset: bool) -> None:
    checks.rank(who, input, (1, 2), ValueError)
    if input.ndim == 2:
        checks.require(offsets is None, who, "input of two dimensions takes no offsets", ValueError)
        return
    if offsets is None:
        checks.fail(who, "input of one dimension needs offsets", ValueError)
    checks.rank(who, offsets, (1,), ValueError, name="offsets")
    checks.require(jnp.issubdtype(offsets.dtype, np.integer), who, "offsets must be integers", RuntimeError, dtype=offsets.dtype)
    enough = offsets.size >= 1 or not include_last_offset
    checks.require(enough, who, "offsets must not be empty with include_last_offset", RuntimeError, **{"offsets.shape": offsets.shape})
    known = checks.concrete(offsets)
    if known is not None and known.size:
        ordered = known[0] == 0 and (np.diff(known) >= 0).all() and known[-1] <= input.size
        rule = "offsets must start at 0, never decrease and stay within input"
        checks.require(ordered, who, rule, RuntimeError, offsets=known.tolist(), size=input.size)


@function
def _bags(
    input: Array,
    weight: Array,
    offsets: Array | None,
    factors: Array | None,
    padding_idx: int | None,
    mode: str,
    include_last_offset: bool,
    lookup: tuple[float | None, float, bool],
) -> Array:
    bags = None if offsets is None else len(offsets) - include_last_offset
    if mode != "max" and lookup[0] is None and not lookup[2] and takes(weight, input) and bags != 0:
        return _totals(input, weight, offsets, factors, padding_idx, mode, bags)
    rows = _rows(input, weight, *lookup).astype(dtypes.accumulator(weight.dtype))
    if factors is not None:
        rows = rows * factors[..., None].astype(rows.dtype)
    kept = jnp.full(input.shape, True) if padding_idx is None else input != padding_idx
    out = _reduce_equal(rows, kept, mode) if offsets is None else _reduce_ragged(rows, kept, mode, offsets, bags or 0)
    return out.astype(weight.dtype)


def _totals(
    input: Array, weight: Array, offsets: Array | None, factors: Array | None, padding_idx: int | None, mode: str, bags: int | None
) -> Array:
    """Sums or means of bags, without their rows being laid out."""
    bounds = None if offsets is None else jnp.clip(jnp.append(offsets, input.size)[: (bags or 0) + 1], 0, input.size).astype(np.int32)
    total = sampling.bags(weight, input, factors, padding_idx, bounds)
    if mode == "mean":
        kept = None if padding_idx is None else input != padding_idx
        if offsets is not None and bounds is not None:
            count = jnp.diff(bounds) if kept is None else jax.ops.segment_sum(kept.astype(np.int32), _bag_of(input.size, offsets), bags)
        else:
            count = jnp.full(len(input), input.shape[1]) if kept is None else kept.sum(1)
        total = total / jnp.maximum(count, 1).astype(total.dtype)[:, None]
    return total if offsets is None else jnp.where(_sound(offsets, input.size), total, jnp.nan)


def _bag_of(entries: int, offsets: Array) -> Array:
    """The bag of each entry."""
    return jnp.searchsorted(offsets, jnp.arange(entries, dtype=np.int32).astype(offsets.dtype), side="right") - 1


def _sound(offsets: Array, entries: int) -> Array:
    return (offsets[0] == 0) & (jnp.diff(offsets) >= 0).all() & (offsets[-1] <= entries)


def _reduce_equal(rows: Array, kept: Array, mode: str) -> Array:
    """Bags of one length: rows (B, L, D), kept (B, L)."""
    some = kept[..., None]
    if mode == "max":
        if not rows.shape[1]:
            return jnp.zeros((rows.shape[0], rows.shape[2]), rows.dtype)
        rows = jnp.where(some, rows, -jnp.inf)
        largest = jnp.take_along_axis(rows, jnp.argmax(rows, 1, keepdims=True), 1)[:, 0]
        return jnp.where(some.any(1), largest, 0)
    total = jnp.where(some, rows, 0).sum(1)
    return total / jnp.maximum(some.sum(1), 1).astype(rows.dtype) if mode == "mean" else total


def _reduce_ragged(rows: Array, kept: Array, mode: str, offsets: Array, bags: int) -> Array:
    """Bags between offsets: rows (n, D), kept (n,). Offsets that make no sense give NaN."""
    n = len(rows)
    if not bags:
        return jnp.zeros((0, rows.shape[1]), rows.dtype)
    place = jnp.arange(n, dtype=np.int32)
    bag = jnp.where(kept, _bag_of(n, offsets), bags)
    if mode == "max":
        # The first of the largest: their gradient goes there, and nowhere else.
        ranked = jax.lax.stop_gradient(jnp.where(jnp.isnan(rows), jnp.inf, rows))
        largest = jax.ops.segment_max(ranked, bag, bags)
        first = jax.ops.segment_min(jnp.where(ranked == largest[bag], place[:, None], n), bag, bags)
        out = jnp.take_along_axis(rows, first, 0, mode="fill", fill_value=0)
    else:
        out = jax.ops.segment_sum(rows, bag, bags)
    if mode == "mean":
        out = out / jnp.maximum(jax.ops.segment_sum(kept.astype(rows.dtype), bag, bags), 1)[:, None]
    return jnp.where(_sound(offsets, n), out, jnp.nan)


@function(jit=False)
def one_hot(input: Array, num_classes: int = -1) -> Array:
    """1 at each index along a new last dimension, 0 elsewhere, as integers.

    Shape: input (*), output (*, num_classes).

    Args:
        num_classes: the size of the new dimension; -1 takes the largest index and one, which must be known: not traced.

    Raises:
        RuntimeError: ``input`` is not of integers, an index is not in [0, num_classes), or the number of classes cannot
            be told. A traced index out of range gives zeros only.

    Differs from torch: any integer dtype is taken; without x64 mode the output is int32.
    """
    who = "one_hot"
    checks.require(jnp.issubdtype(input.dtype, np.integer), who, "input must be integers", RuntimeError, dtype=input.dtype)
    if num_classes == -1:
        checks.require(input.size, who, "num_classes cannot be told from an empty input", RuntimeError)
        traced = isinstance(input, Tracer)
        checks.require(not traced, who, "num_classes cannot be told from a traced input; pass it", RuntimeError)
        num_classes = int(input.max()) + 1
    sensible = num_classes > 0 or (num_classes == 0 and input.size)
    checks.require(sensible, who, "num_classes must be positive", RuntimeError, num_classes=num_classes)
    checks.index_range(who, "input", input, num_classes, exc=RuntimeError)
    return jax.nn.one_hot(input, num_classes, dtype=dtypes.index())


class _Table(Layer):
    """What both embeddings share: the table, its initial values and whether it is trained."""

    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None
    pretrained: Constant | None
    freeze: bool
    dtype: Any

    def validate(self) -> None:
        shape = tuple(checks.integer(self, name, getattr(self, name), 0) for name in ("num_embeddings", "embedding_dim"))
        self._set(padding_idx=_padding(self, self.padding_idx, self.num_embeddings))
        if self.pretrained is not None:
            given = self.pretrained.value.shape
            checks.require(given == shape, self, "_weight must be (num_embeddings, embedding_dim)", AssertionError, shape=given)

    def setup(self, key: Array) -> dict[str, Array | None]:
        if self.pretrained is not None:
            return {"weight": jnp.asarray(self.pretrained.value)}
        weight = jax.random.normal(key, (self.num_embeddings, self.embedding_dim), dtypes.parameter(self, self.dtype))
        return {"weight": weight if self.padding_idx is None else weight.at[self.padding_idx].set(0)}

    def trainable(self, name: str) -> bool:
        return not self.freeze

    @classmethod
    def _pretrained(cls, embeddings: Any, freeze: bool, **configuration: Any) -> Self:
        shape = np.shape(embeddings)
        checks.require(len(shape) == 2, cls, "embeddings must have two dimensions", AssertionError, shape=shape)
        return cls(*shape, _weight=embeddings, _freeze=freeze, **configuration)  # type: ignore[call-arg]


@layer
class Embedding(_Table):
    """The rows of a learned table at the input's indices.

    Shape: input (*) of integers, output (*, embedding_dim).

    Args:
        num_embeddings: number of rows.
        embedding_dim: size of a row.
        padding_idx: a row that starts as zeros and gets no gradient; negative counts from the end.
        max_norm: a looked-up row with a larger norm is shortened to it; derivatives pass this by.
        norm_type: the p of that norm.
        scale_grad_by_freq: whether the gradient of a row is divided by how often it is looked up in this call.
        sparse: accepted; the gradient is dense.
        device: where the table lives.
        dtype: of the table; float32 when None.

    State: ``weight`` (num_embeddings, embedding_dim), N(0, 1) with zeros at ``padding_idx``; a frozen one is in ``buffers``.

    Raises:
        AssertionError: ``padding_idx`` is out of range.
        IndexError: an index is out of range. Traced, it gives a row of NaN.

    Differs from torch: ``max_norm`` leaves ``weight`` itself as it is, in every face: the output is the same, but an
        optimiser steps from the rows as they were before shortening. Gradients are dense also for ``sparse=True``.
    """

    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None = None
    max_norm: float | None = None
    norm_type: float = 2.0
    scale_grad_by_freq: bool = False
    sparse: bool = False
    pretrained: Constant | None = config(default=None, alias="_weight")
    freeze: bool = config(default=False, alias="_freeze")
    device: Any = None
    dtype: Any = None
    weight: Array = param()

    def compute(self, s: Any, input: Array) -> Array:
        return embedding(input, s.weight, self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq)

    def extra_repr(self) -> str:
        text = f"{self.num_embeddings}, {self.embedding_dim}"
        defaults = {"padding_idx": None, "max_norm": None, "norm_type": 2, "scale_grad_by_freq": False, "sparse": False}
        return text + "".join(f", {n}={getattr(self, n)}" for n, default in defaults.items() if getattr(self, n) != default)

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Any,
        freeze: bool = True,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Self:
        """An embedding of the given table (V, D), not trained unless ``freeze`` is off; other arguments as the constructor's."""
        return cls._pretrained(
            embeddings,
            freeze,
            padding_idx=padding_idx,
            max_norm=max_norm,
            norm_type=norm_type,
            scale_grad_by_freq=scale_grad_by_freq,
            sparse=sparse,
        )


@layer
class EmbeddingBag(_Table):
    """The sum, mean or largest of the rows of a learned table in each bag of indices; 0 for an empty bag.

    Shape: input (B, L) for bags of one length, or (n,) with offsets (B,) or, with the last, (B + 1,);
        per_sample_weights as input; output (B, embedding_dim).

    Args:
        num_embeddings, embedding_dim, max_norm, norm_type, scale_grad_by_freq, sparse, device, dtype: as :class:`Embedding`.
        mode: "sum", "mean" or "max".
        include_last_offset: whether the last of ``offsets`` is where the last bag ends.
        padding_idx: an index that belongs to no bag; its row starts as zeros. Negative counts from the end.

    State: ``weight`` (num_embeddings, embedding_dim), N(0, 1) with zeros at ``padding_idx``; a frozen one is in ``buffers``.

    Raises:
        AssertionError: ``padding_idx`` is out of range.

    Differs from torch: as :class:`Embedding`.
    """

    num_embeddings: int
    embedding_dim: int
    max_norm: float | None = None
    norm_type: float = 2.0
    scale_grad_by_freq: bool = False
    mode: str = "mean"
    sparse: bool = False
    pretrained: Constant | None = config(default=None, alias="_weight")
    include_last_offset: bool = False
    padding_idx: int | None = None
    device: Any = None
    dtype: Any = None
    freeze: bool = config(default=False, alias="_freeze")
    weight: Array = param()

    def compute(self, s: Any, input: Array, offsets: Array | None = None, per_sample_weights: Array | None = None) -> Array:
        return embedding_bag(
            input,
            s.weight,
            offsets,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.mode,
            self.sparse,
            per_sample_weights,
            self.include_last_offset,
            self.padding_idx,
        )

    def extra_repr(self) -> str:
        text = f"{self.num_embeddings}, {self.embedding_dim}"
        defaults = {"max_norm": None, "norm_type": 2, "scale_grad_by_freq": False, "mode": "", "padding_idx": None}
        return text + "".join(f", {n}={getattr(self, n)!r}" for n, default in defaults.items() if getattr(self, n) != default)

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Any,
        freeze: bool = True,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
    ) -> Self:
        """Bags over the given table (V, D), not trained unless ``freeze`` is off; other arguments as the constructor's."""
        return cls._pretrained(
            embeddings,
            freeze,
            max_norm=max_norm,
            norm_type=norm_type,
            scale_grad_by_freq=scale_grad_by_freq,
            mode=mode,
            sparse=sparse,
            include_last_offset=include_last_offset,
            padding_idx=padding_idx,
        )
