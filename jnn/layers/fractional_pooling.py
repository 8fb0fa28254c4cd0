"""Max pooling over windows at random places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ..core import checks, dtypes, rng
from ..core.function import function
from ..core.spec import Layer, buffer, config, layer
from ..kernels import windows
from .pooling import Size, nonempty, with_indices

Array = jax.Array
Ratio = float | tuple[float, ...]


def _ratios(who: object, ndim: int, output_ratio: Ratio) -> tuple[float, ...]:
    ratios = output_ratio if isinstance(output_ratio, tuple) else (output_ratio,) * ndim
    checks.require(len(ratios) == ndim, who, f"output_ratio must be a number or {ndim} numbers", output_ratio=output_ratio)
    return ratios


def _starts(sample: Array, size: int, window: int, count: int) -> Array:
    """Where ``count`` windows begin along an axis: a pseudo-random walk from near 0 to the last place that holds a window."""
    last = jnp.asarray(size - window, np.int32)[None]
    if count == 1:
        return last
    sample = sample.astype(dtypes.accumulator(sample.dtype))
    step = jnp.asarray(size - window, sample.dtype) / (count - 1)
    walk = ((jnp.arange(count - 1, dtype=sample.dtype) + sample) * step).astype(np.int32) - (sample * step).astype(np.int32)
    return jnp.concatenate([walk, last])


@function
def _pool_at(x: Array, samples: Array, kernel: tuple[int, ...], counts: tuple[int, ...], positions: bool) -> tuple[Array, Array | None]:
    """Pooling of (N, C, *sizes) at the places that ``samples`` (N, C, ndim) make."""

    def plane(x: Array, sample: Array) -> tuple[Array, Array | None]:
        return windows.maximum_at(x, [_starts(*of) for of in zip(sample, x.shape, kernel, counts)], kernel, positions)

    return jax.vmap(jax.vmap(plane))(x, samples)


def _fractional_max_pool(
    ndim: int,
    x: Array,
    kernel_size: Size,
    output_size: Size | None,
    output_ratio: Ratio | None,
    return_indices: bool,
    samples: Array | None,
    key: Array | None,
) -> Any:
    who = f"fractional_max_pool{ndim}d"
    nonempty(who, x, ndim)
    checks.require(jnp.issubdtype(x.dtype, np.floating), who, "input must be floating point", NotImplementedError, dtype=x.dtype)
    kernel, sizes = checks.ntuple(who, "kernel_size", kernel_size, ndim), x.shape[-ndim:]
    if output_size is not None:
        counts = checks.ntuple(who, "output_size", output_size, ndim)
    elif output_ratio is not None:
        counts = tuple(int(n * ratio) for n, ratio in zip(sizes, _ratios(who, ndim, output_ratio)))
    else:
        checks.fail(who, "output_size or output_ratio must be given")
    given = {"kernel_size": kernel, "output_size": counts}
    checks.require(min(kernel) > 0 and min(counts) >= 0, who, "sizes must be positive", RuntimeError, **given)
    # torch wants one place more in three dimensions than in two.
    fits = all(count + k - 1 + (ndim == 3) <= n for count, k, n in zip(counts, kernel, sizes))
    checks.require(fits, who, "kernel_size is too large for the input", RuntimeError, shape=x.shape, **given)
    batch = x if x.ndim == ndim + 2 else x[None]
    if samples is None:
        samples = jax.random.uniform(rng.next_key(who, key), (*batch.shape[:2], ndim), x.dtype)
    right = samples.ndim == 3 and samples.shape[0] >= batch.shape[0] and samples.shape[1:] == (batch.shape[1], ndim)
    checks.require(right, who, f"_random_samples must be (N, C, {ndim})", RuntimeError, shape=samples.shape)
    checks.same_dtype(who, input=x, _random_samples=samples)
    # torch's order of the samples is W, H in two dimensions, and D, H, W in three.
    samples = samples[: batch.shape[0], :, :: -1 if ndim == 2 else 1]
    if 0 in (*counts, batch.shape[0]):
        empty = (*x.shape[:-ndim], *counts)
        values, places = jnp.zeros(empty, x.dtype), jnp.zeros(empty, dtypes.index())
    else:
        values, places = _pool_at(batch, samples, kernel, counts, return_indices)
        if x.ndim < batch.ndim:
            values, places = values[0], None if places is None else places[0]
    return (values, places) if return_indices else values


@function(jit=False)
def fractional_max_pool2d(
    input: Array,
    kernel_size: Size,
    output_size: Size | None = None,
    output_ratio: Ratio | None = None,
    return_indices: bool = False,
    _random_samples: Array | None = None,
    key: Array | None = None,
) -> Any:
    """The greatest value in each of as many windows as ``output_size`` says, at random places that are about evenly apart.

    Shape: input (N, C, *sizes) or (C, *sizes), output (N, C, *output_size) or (C, *output_size).

    Args:
        input: floating point. NaN in a window is its maximum; of equal values the first is taken, in the gradient too.
        kernel_size: places in a window, one number or one an axis.
        output_size: windows by axis, one number or one an axis.
        output_ratio: the same as a fraction of the input's size, read when ``output_size`` is None.
        return_indices: return ``(values, indices)``, flat indices into the plane, int64, or int32 while JAX's x64 mode is off.
        _random_samples: uniform in [0, 1), (N, C, axes), of the input's dtype; drawn when None.
        key: for the draw; by default the running call's or the default generator's.

    Raises:
        ValueError: neither ``output_size`` nor ``output_ratio`` is given.
        RuntimeError: windows that do not fit, an input of another rank or empty other than in N, samples of another shape or dtype.
        NotImplementedError: input that is not floating point.

    Reference: Graham, Fractional max-pooling, 2014.
    """
    return _fractional_max_pool(2, input, kernel_size, output_size, output_ratio, return_indices, _random_samples, key)


fractional_max_pool2d_with_indices = with_indices(fractional_max_pool2d)


@function(jit=False)
def fractional_max_pool3d(
    input: Array,
    kernel_size: Size,
    output_size: Size | None = None,
    output_ratio: Ratio | None = None,
    return_indices: bool = False,
    _random_samples: Array | None = None,
    key: Array | None = None,
) -> Any:
    """:func:`fractional_max_pool2d` over volumes, (N, C, D, H, W) or (C, D, H, W)."""
    return _fractional_max_pool(3, input, kernel_size, output_size, output_ratio, return_indices, _random_samples, key)


fractional_max_pool3d_with_indices = with_indices(fractional_max_pool3d)


@layer
class _FractionalMaxPool(Layer):
    ndim: ClassVar[int]
    pool: ClassVar[Callable[..., Any]]

    kernel_size: Size
    output_size: Size | None = None
    output_ratio: Ratio | None = None
    return_indices: bool = False
    samples: Any = config(default=None, alias="_random_samples")
    _random_samples: Array | None = buffer()

    def validate(self) -> None:
        self._set(kernel_size=checks.ntuple(self, "kernel_size", self.kernel_size, self.ndim, 1))
        given = {"output_size": self.output_size, "output_ratio": self.output_ratio}
        one = (self.output_size is None) != (self.output_ratio is None)
        checks.require(one, self, "either output_size or output_ratio must be given", **given)
        if self.output_size is not None:
            self._set(output_size=checks.ntuple(self, "output_size", self.output_size, self.ndim))
        if self.output_ratio is not None:
            ratios = _ratios(self, self.ndim, self.output_ratio)
            checks.require(all(0 < r < 1 for r in ratios), self, "output_ratio must be between 0 and 1", output_ratio=self.output_ratio)
            self._set(output_ratio=ratios)

    def setup(self, key: Array) -> dict[str, Array | None]:
        return {"_random_samples": None if self.samples is None else self.samples.value}

    def compute(self, s: Any, input: Array) -> Any:
        return self.pool(input, self.kernel_size, self.output_size, self.output_ratio, self.return_indices, s._random_samples)


@layer
class FractionalMaxPool2d(_FractionalMaxPool):
    """The greatest value in each of a given number of windows, at random places that are drawn anew at every call.

    Shape and arguments as :func:`fractional_max_pool2d`'s: (N, C, H, W) or (C, H, W). Just one of ``output_size`` and
    ``output_ratio`` is given, the ratios between 0 and 1.

    State: ``_random_samples`` (N, C, axes), a buffer where it is given.

    Reference: Graham, Fractional max-pooling, 2014.
    """

    ndim = 2
    pool = staticmethod(fractional_max_pool2d)


@layer
class FractionalMaxPool3d(_FractionalMaxPool):
    """:class:`FractionalMaxPool2d` over volumes, (N, C, D, H, W) or (C, D, H, W)."""

    ndim = 3
    pool = staticmethod(fractional_max_pool3d)
