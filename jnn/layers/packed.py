"""Batches of sequences of different lengths, packed step by step without padding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from ..core import checks, dtypes
from ..core.function import as_array
from ..core.spec import find_device

Array = jax.Array
Lengths = Array | np.ndarray | Sequence[int]


class _Fields(NamedTuple):
    data: Any
    batch_sizes: Any
    sorted_indices: Any
    unsorted_indices: Any


class PackedSequence(_Fields):
    """The steps of a batch of sequences, longest first, one after another: ``abc`` and ``x`` are packed as ``axbc``.

    Made by :func:`pack_padded_sequence` and :func:`pack_sequence`; recurrent layers take it and give it back. It is a
    pytree, so it goes through jax transforms. Inside a compiled call to which it is an argument ``batch_sizes`` is
    traced, and the batch size is read from ``sorted_indices`` (pack with ``enforce_sorted=False``) or the initial state.

    Args:
        data: the values, (sum of lengths, *).
        batch_sizes: how many sequences have a t-th step, (longest length,).
        sorted_indices: the order in which the sequences were packed, (N,), or None when that in which they were given.
        unsorted_indices: its inverse.
    """

    __slots__ = ()

    def __new__(cls, data: Any, batch_sizes: Any = None, sorted_indices: Any = None, unsorted_indices: Any = None) -> Self:
        if batch_sizes is None:
            ok = isinstance(data, (list, tuple)) and len(data) == 2
            checks.require(ok, cls, "without batch_sizes, data must be (data, batch_sizes)", AssertionError)
            data, batch_sizes = data
        if unsorted_indices is None:
            unsorted_indices = invert_permutation(sorted_indices)
        return super().__new__(cls, data, batch_sizes, sorted_indices, unsorted_indices)

    def to(self, dtype: Any = None, device: Any = None) -> Self:
        """With ``data`` of another dtype or on another device; torch's order ``to(device, dtype)`` is taken too."""
        if isinstance(dtype, (str, jax.Device, jax.sharding.Sharding)) and not _is_dtype(dtype):
            dtype, device = device, dtype
        data = self.data if dtype is None else self.data.astype(dtypes.canonical(type(self), dtype))
        return self._replace(data=data if device is None else jax.device_put(data, find_device(type(self), device)))

    def cpu(self) -> Self:
        """With ``data`` on the CPU."""
        return self.to(device="cpu")

    def cuda(self, device: Any = "cuda") -> Self:
        """With ``data`` on a GPU."""
        return self.to(device=f"cuda:{device}" if isinstance(device, int) else device)

    def double(self) -> Self:
        """With ``data`` as float64."""
        return self.to(np.float64)

    def float(self) -> Self:
        """With ``data`` as float32."""
        return self.to(np.float32)

    def half(self) -> Self:
        """With ``data`` as float16."""
        return self.to(np.float16)

    def bfloat16(self) -> Self:
        """With ``data`` as bfloat16."""
        return self.to(jnp.bfloat16)

    def long(self) -> Self:
        """With ``data`` as int64."""
        return self.to(np.int64)

    def int(self) -> Self:
        """With ``data`` as int32."""
        return self.to(np.int32)

    def short(self) -> Self:
        """With ``data`` as int16."""
        return self.to(np.int16)

    def char(self) -> Self:
        """With ``data`` as int8."""
        return self.to(np.int8)

    def byte(self) -> Self:
        """With ``data`` as uint8."""
        return self.to(np.uint8)

    def pin_memory(self) -> Self:
        """The same: jax places arrays itself."""
        return self

    def is_pinned(self) -> bool:
        """False: jax places arrays itself."""
        return False

    @property
    def is_cuda(self) -> bool:
        """Whether ``data`` is on a GPU."""
        return any(device.platform == "gpu" for device in self.data.devices())


def _is_dtype(name: Any) -> bool:
    try:
        np.dtype(name)
    except TypeError:
        return False
    return True


class Layout(NamedTuple):
    """Where the steps of a packed batch lie. Computed in numpy while ``batch_sizes`` is known, else traced."""

    batch_sizes: Any
    lengths: Any
    valid: Any

    @classmethod
    def of(cls, who: object, packed: PackedSequence, batch: int | None = None) -> Layout:
        """The layout of a packed batch; ``batch`` is its size where it is known from elsewhere."""
        known = checks.concrete(packed.batch_sizes)
        sizes: Any = packed.batch_sizes if known is None else known
        checks.rank(who, sizes, (1,), name="batch_sizes")
        if known is not None:
            batch = int(known[0]) if known.size else 0
        elif packed.sorted_indices is not None:
            batch = packed.sorted_indices.shape[0]
        if batch is None:
            checks.fail(
                who, "under jit a packed sequence must be made with enforce_sorted=False; or pass padded data and lengths=", TypeError
            )
        valid = np.arange(batch)[None] < sizes[:, None]
        return cls(sizes, valid.sum(0, dtype=sizes.dtype), valid)

    def pad(self, data: Array) -> Array:
        """Packed values as (T, N, *), with some value where a sequence has ended."""
        starts = self.batch_sizes.cumsum() - self.batch_sizes
        return jnp.take(data, starts[:, None] + np.arange(self.valid.shape[1])[None], axis=0, mode="clip")

    def pack(self, padded: Array, total: int) -> Array:
        """(T, N, *) as packed values, ``total`` of them."""
        steps = np.nonzero(self.valid) if isinstance(self.valid, np.ndarray) else jnp.nonzero(self.valid, size=total)
        return padded[steps]


def _known(who: str, name: str, values: Any) -> np.ndarray:
    known = checks.concrete(values)
    if known is None:
        checks.fail(who, f"{name} must be known, as shapes depend on it; under jit pass lengths= to the recurrent layer", TypeError)
    checks.require(known.ndim == 1, who, f"{name} must be 1D", RuntimeError, shape=known.shape)
    return known.astype(dtypes.index())


def invert_permutation(permutation: Any) -> Any:
    """The inverse of a permutation (N,); None of None."""
    if permutation is None:
        return None
    known = checks.concrete(permutation)
    return jnp.argsort(permutation) if known is None else np.argsort(known).astype(known.dtype)


def pack_padded_sequence(input: Array, lengths: Lengths, batch_first: bool = False, enforce_sorted: bool = True) -> PackedSequence:
    """Pack a padded batch.

    Shape: input (T, N, *), or (N, T, *) when ``batch_first``.

    Args:
        lengths: the length of each sequence in steps, (N,); positive and known, not traced.
        enforce_sorted: whether the lengths must be in decreasing order; if False the sequences are sorted, and come back
            in the given order from whatever unpacks them.

    Raises:
        RuntimeError: lengths that are not sorted, positive, at most T, or one a sequence; an empty input.
    """
    who = "pack_padded_sequence"
    input, known = as_array(input), _known(who, "lengths", lengths)
    checks.require(input.ndim >= 2, who, "input must have at least two dimensions", RuntimeError, shape=input.shape)
    checks.require(input.size > 0, who, "input must not be empty", RuntimeError, shape=input.shape)
    padded = input.swapaxes(0, 1) if batch_first else input
    steps, batch = padded.shape[:2]
    checks.require(len(known) == batch, who, "there must be one length a sequence", RuntimeError, lengths=len(known), batch_size=batch)
    checks.require(known.min() > 0, who, "lengths must be positive", RuntimeError, lengths=known.tolist())
    checks.require(known.max() <= steps, who, "lengths must not exceed the padded length", RuntimeError, lengths=known.max(), T=steps)
    order = None
    if enforce_sorted:
        sorted_ = (np.diff(known) <= 0).all()
        checks.require(
            sorted_, who, "lengths must be sorted in decreasing order when enforce_sorted is True", RuntimeError, lengths=known.tolist()
        )
    else:
        order = np.argsort(-known, kind="stable").astype(known.dtype)
        padded, known = padded[:, order], known[order]
    sizes = (known[None] > np.arange(known[0])[:, None]).sum(1, dtype=known.dtype)
    packed = PackedSequence(padded, sizes, order)
    return packed._replace(data=Layout.of(who, packed).pack(padded, int(known.sum())))


def pad_packed_sequence(
    sequence: PackedSequence, batch_first: bool = False, padding_value: float = 0.0, total_length: int | None = None
) -> tuple[Array, Any]:
    """The padded batch, and the length of each sequence: the inverse of :func:`pack_padded_sequence`.

    Args:
        padding_value: what stands after the end of a sequence.
        total_length: how many steps to pad to; the longest length when None.

    Raises:
        ValueError: ``total_length`` is below the longest length.
    """
    layout = Layout.of("pad_packed_sequence", sequence)
    padded = layout.pad(as_array(sequence.data))
    steps = padded.shape[0]
    mask = jnp.reshape(layout.valid, layout.valid.shape + (1,) * (padded.ndim - 2))
    padded = jnp.where(mask, padded, jnp.asarray(padding_value, padded.dtype))
    lengths = layout.lengths
    if total_length is not None:
        ok = total_length >= steps
        checks.require(
            ok, "pad_packed_sequence", "total_length must be at least the longest length", total_length=total_length, longest=steps
        )
        widths = [(0, total_length - steps)] + [(0, 0)] * (padded.ndim - 1)
        padded = jnp.pad(padded, widths, constant_values=padding_value)
    if sequence.unsorted_indices is not None:
        padded, lengths = padded[:, sequence.unsorted_indices], lengths[sequence.unsorted_indices]
    return (padded.swapaxes(0, 1) if batch_first else padded), lengths


def pad_sequence(sequences: Any, batch_first: bool = False, padding_value: float = 0.0, padding_side: str = "right") -> Array:
    """Stack sequences (L_i, *) as (T, N, *), or (N, T, *) when ``batch_first``, padded to the longest.

    Args:
        padding_value: what fills up a sequence.
        padding_side: where: ``"right"`` or ``"left"``.

    Raises:
        RuntimeError: no sequences, another ``padding_side``, or trailing dimensions that differ.
    """
    who = "pad_sequence"
    checks.require(isinstance(sequences, Iterable), who, "sequences must be iterable", RuntimeError, sequences=type(sequences))
    arrays = [jnp.asarray(s) for s in sequences]
    checks.require(arrays, who, "there must be at least one sequence", RuntimeError)
    checks.require(
        padding_side in ("left", "right"), who, "padding_side must be 'left' or 'right'", RuntimeError, padding_side=padding_side
    )
    for array in arrays:
        checks.require(array.ndim >= 1, who, "a sequence must have at least one dimension", RuntimeError, shape=array.shape)
        same = array.shape[1:] == arrays[0].shape[1:]
        checks.require(same, who, "trailing dimensions must be equal", RuntimeError, first=arrays[0].shape, other=array.shape)
    longest = max(array.shape[0] for array in arrays)

    def fill(array: Array) -> Array:
        gap = longest - array.shape[0]
        ends = (gap, 0) if padding_side == "left" else (0, gap)
        return jnp.pad(array.astype(arrays[0].dtype), [ends] + [(0, 0)] * (array.ndim - 1), constant_values=padding_value)

    return jnp.stack([fill(array) for array in arrays], 0 if batch_first else 1)


def unpad_sequence(padded_sequences: Array, lengths: Lengths, batch_first: bool = False) -> list[Array]:
    """The sequences of a padded batch, each (L_i, *). ``lengths`` must be known, not traced."""
    known = _known("unpad_sequence", "lengths", lengths)
    padded = as_array(padded_sequences)
    padded = padded if batch_first else padded.swapaxes(0, 1)
    ok = len(known) == padded.shape[0]
    checks.require(ok, "unpad_sequence", "there must be one length a sequence", lengths=len(known), batch_size=padded.shape[0])
    return [sequence[: max(int(length), 0)] for sequence, length in zip(padded, known, strict=True)]


def pack_sequence(sequences: Sequence[Array], enforce_sorted: bool = True) -> PackedSequence:
    """Pack sequences (L_i, *); see :func:`pack_padded_sequence`."""
    return pack_padded_sequence(pad_sequence(sequences), [len(s) for s in sequences], enforce_sorted=enforce_sorted)


def unpack_sequence(packed_sequences: PackedSequence) -> list[Array]:
    """The sequences of a packed batch, each (L_i, *), in the order in which they were given."""
    padded, lengths = pad_packed_sequence(packed_sequences, batch_first=True)
    return unpad_sequence(padded, lengths, batch_first=True)
