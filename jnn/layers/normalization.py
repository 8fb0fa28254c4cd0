"""Normalisation of each sample by itself: over its last dimensions, over groups of channels, or over neighbouring channels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..core import checks, dtypes
from ..core.function import function
from ..core.spec import Layer, config, layer, param
from ..kernels.reductions import mean

Array = jax.Array
Shape = tuple[int, ...]


def moments(x: Array, axes: Shape, axis_name: Any = None) -> tuple[Array, Array, Array]:
    """Mean and biased variance over ``axes``, which stay as ones, and the deviations from the mean: two passes.

    With ``axis_name``, also over mapped axes.
    """
    center = mean(x, axes)
    center = center if axis_name is None else lax.pmean(center, axis_name)
    deviation = x - center
    variance = mean(jnp.square(deviation), axes)
    return center, variance if axis_name is None else lax.pmean(variance, axis_name), deviation


def affine(x: Array, shape: Shape, weight: Array | None, bias: Array | None, dtype: Any) -> Array:
    """``x * weight + bias`` with both reshaped to ``shape``, which broadcasts, computed as ``x`` and returned as ``dtype``."""
    if weight is not None:
        x = x * weight.astype(x.dtype).reshape(shape)
    if bias is not None:
        x = x + bias.astype(x.dtype).reshape(shape)
    return x.astype(dtype)


def check_affine(who: object, input: Array, shape: Shape, **state: Array | None) -> None:
    """Refuse state that does not have ``shape`` and the dtype of the input or of its statistics."""
    checks.floating(who, "input", input)
    for name, value in state.items():
        if value is not None:
            checks.require(value.shape == shape, who, f"{name} must have shape {shape}", RuntimeError, **{name: value})
            ok = value.dtype in (input.dtype, dtypes.accumulator(input.dtype))
            checks.require(ok, who, f"{name} must have the dtype of the input", RuntimeError, **{name: value, "input": input})


def ones_and_zeros(who: object, shape: Shape, dtype: Any, weight: bool, bias: bool) -> dict[str, Array | None]:
    """The initial state of a normalisation: it changes nothing."""
    dtype = dtypes.parameter(who, dtype)
    return {
        "weight": jnp.ones(shape, dtype) if weight else None,
        "bias": jnp.zeros(shape, dtype) if weight and bias else None,
    }


def _last_axes(who: object, input: Array, shape: Shape) -> Shape:
    """The axes of ``input`` that ``shape``, which must be what it ends with, stands for."""
    checks.require(len(shape) > 0, who, "normalized_shape must have at least one dimension", RuntimeError, normalized_shape=shape)
    ok = input.ndim >= len(shape) and input.shape[input.ndim - len(shape) :] == shape
    checks.require(ok, who, "the input must end with normalized_shape", RuntimeError, input=input, normalized_shape=shape)
    return tuple(range(input.ndim - len(shape), input.ndim))


def _shape(who: object, normalized_shape: int | Iterable[int]) -> Shape:
    sizes = normalized_shape if isinstance(normalized_shape, Iterable) else (normalized_shape,)
    return tuple(checks.integer(who, "normalized_shape", size, 0) for size in sizes)


@function
def layer_norm(
    input: Array, normalized_shape: Iterable[int], weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5
) -> Array:
    """``y = (x - mean) / sqrt(var + eps) * weight + bias``, mean and biased variance taken over the last dimensions.

    Shape: input (*, *normalized_shape), weight and bias normalized_shape, output as input.

    Args:
        normalized_shape: sizes of the last dimensions, over which each sample is normalised.
        weight, bias: in the dtype of the input, or float32 for an input of a half type.
        eps: added to the variance.

    Raises:
        RuntimeError: the input does not end with normalized_shape, or weight or bias has another shape or dtype.
    """
    shape = _shape("layer_norm", normalized_shape)
    axes = _last_axes("layer_norm", input, shape)
    check_affine("layer_norm", input, shape, weight=weight, bias=bias)
    _, variance, deviation = moments(input.astype(dtypes.accumulator(input.dtype)), axes)
    return affine(deviation * lax.rsqrt(variance + eps), (1,) * axes[0] + shape, weight, bias, input.dtype)


@layer
class LayerNorm(Layer):
    """Normalises each sample over its last dimensions: ``y = (x - mean) / sqrt(var + eps) * weight + bias``.

    Shape: input (*, *normalized_shape), output the same.

    Args:
        normalized_shape: sizes of the last dimensions; an int means the last one only.
        eps: added to the variance.
        elementwise_affine: whether to learn a weight and a bias.
        bias: whether to learn a bias as well as a weight.
        device: where the parameters live; ``"meta"`` makes abstract ones.
        dtype: of the parameters; float32 when None.

    State: ``weight``, ones, and ``bias``, zeros, of shape normalized_shape.

    Reference: Ba, Kiros and Hinton, Layer Normalization, 2016.
    """

    normalized_shape: int | Iterable[int]
    eps: float = 1e-5
    elementwise_affine: bool = True
    use_bias: bool = config(default=True, alias="bias")
    device: Any = None
    dtype: Any = None
    weight: Array | None = param()
    bias: Array | None = param()

    def validate(self) -> None:
        self._set(normalized_shape=_shape(self, self.normalized_shape))

    def setup(self, key: Array) -> dict[str, Array | None]:
        return ones_and_zeros(self, _shape(self, self.normalized_shape), self.dtype, self.elementwise_affine, self.use_bias)

    def compute(self, s: Any, input: Array) -> Array:
        return layer_norm(input, _shape(self, self.normalized_shape), s.weight, s.bias, self.eps)

    def extra_repr(self) -> str:
        use_bias = self.elementwise_affine and self.use_bias
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}, bias={use_bias}"
