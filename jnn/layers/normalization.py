"""Normalisation of each sample by itself: over its last dimensions, over groups of channels, or over neighbouring channels."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import checks, dtypes
from ..core.function import function
from ..core.spec import Layer, config, layer, param
from ..core.spread import Shards
from ..kernels.normalization import Layout, normalized
from .distance import vector_norm

Array = jax.Array
Shape = tuple[int, ...]


def shared_moments(x: Array, axes: Shape, shards: Shards) -> tuple[Array, Array, Array]:
    """:func:`~jnn.kernels.normalization.moments` over shards of ``x`` too; what is shared is the mean, then the mean of squared deviations.

    The mean is rounded to the precision of ``x``, which of values far from 0 is less than that of their deviations: what
    these lack to a mean of 0 is taken off them. So no result depends on that first mean, and no gradient flows through it.
    """
    center = shards.mean(lax.stop_gradient(jnp.mean(x, axes, keepdims=True)))
    deviation = x - center
    own = [jnp.mean(v, axes, keepdims=True) for v in (deviation, jnp.square(deviation))]
    rest, square = jnp.moveaxis(shards.mean(jnp.stack(own, -1)), -1, 0)
    return center + rest, square - jnp.square(rest), deviation - rest


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
    x = input.astype(dtypes.accumulator(input.dtype))
    return normalized(Layout(axes[0], axes[0], x.ndim, eps), x, weight, bias)[0].astype(input.dtype)


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


@function
def rms_norm(input: Array, normalized_shape: Iterable[int], weight: Array | None = None, eps: float | None = None) -> Array:
    """``y = x / sqrt(mean(x^2) + eps) * weight``, the mean taken over the last dimensions.

    Shape: input (*, *normalized_shape), weight normalized_shape, output as input.

    Args:
        normalized_shape: sizes of the last dimensions, over which each sample is normalised.
        weight: a factor for each element.
        eps: added to the mean square; None means the machine epsilon of the input's dtype, of float32 for a half type.

    Raises:
        RuntimeError: the input does not end with normalized_shape, or weight has another shape.
    """
    shape = _shape("rms_norm", normalized_shape)
    axes = _last_axes("rms_norm", input, shape)
    checks.floating("rms_norm", "input", input)
    ok = weight is None or weight.shape == shape
    checks.require(ok, "rms_norm", f"weight must have shape {shape}", RuntimeError, weight=weight)
    x = input.astype(dtypes.accumulator(input.dtype))
    layout = Layout(axes[0], axes[0], x.ndim, float(jnp.finfo(x.dtype).eps) if eps is None else eps, centered=False)
    return normalized(layout, x, weight, None)[0].astype(input.dtype)


@layer
class RMSNorm(Layer):
    """Scales each sample to unit mean square over its last dimensions: ``y = x / sqrt(mean(x^2) + eps) * weight``.

    Shape: input (*, *normalized_shape), output the same.

    Args:
        normalized_shape: sizes of the last dimensions; an int means the last one only.
        eps: added to the mean square; None means the machine epsilon of the input's dtype, of float32 for a half type.
        elementwise_affine: whether to learn a weight.
        device: where the parameter lives; ``"meta"`` makes an abstract one.
        dtype: of the parameter; float32 when None.

    State: ``weight``, ones, of shape normalized_shape.

    Reference: Zhang and Sennrich, Root Mean Square Layer Normalization, 2019.
    """

    normalized_shape: int | Iterable[int]
    eps: float | None = None
    elementwise_affine: bool = True
    device: Any = None
    dtype: Any = None
    weight: Array | None = param()

    def validate(self) -> None:
        self._set(normalized_shape=_shape(self, self.normalized_shape))

    def setup(self, key: Array) -> dict[str, Array | None]:
        state = ones_and_zeros(self, _shape(self, self.normalized_shape), self.dtype, self.elementwise_affine, False)
        return {"weight": state["weight"]}

    def compute(self, s: Any, x: Array) -> Array:
        return rms_norm(x, _shape(self, self.normalized_shape), s.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


@function
def group_norm(input: Array, num_groups: int, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5) -> Array:
    """``y = (x - mean) / sqrt(var + eps) * weight + bias``, mean and biased variance taken over each group of channels and space.

    Shape: input (N, C, *), weight and bias (C,), output as input.

    Args:
        num_groups: into how many groups the channels are split.
        weight, bias: in the dtype of the input, or float32 for an input of a half type.
        eps: added to the variance.

    Raises:
        RuntimeError: the groups do not divide the channels, or shapes or dtypes do not fit.
        ValueError: one value per group in the whole input.
    """
    checks.require(input.ndim >= 2, "group_norm", "input must have at least two dimensions", RuntimeError, input=input)
    n, channels = input.shape[:2]
    ok = num_groups > 0 and channels % num_groups == 0
    checks.require(ok, "group_norm", "num_groups must divide the channels", RuntimeError, num_groups=num_groups, channels=channels)
    check_affine("group_norm", input, (channels,), weight=weight, bias=bias)
    values = math.prod((n, channels // num_groups, *input.shape[2:]))
    checks.require(values != 1, "group_norm", "statistics need more than one value per group", ValueError, **{"input.shape": input.shape})
    x = input.astype(dtypes.accumulator(input.dtype)).reshape(n, num_groups, channels // num_groups, *input.shape[2:])
    return normalized(Layout(1, 2, 3, eps), x, weight, bias)[0].astype(input.dtype).reshape(input.shape)


@layer
class GroupNorm(Layer):
    """Normalises each group of channels of each sample: ``y = (x - mean) / sqrt(var + eps) * weight + bias``.

    Shape: input (N, C, *), output the same.

    Args:
        num_groups: into how many groups the channels are split.
        num_channels: number of channels, C, which num_groups divides.
        eps: added to the variance.
        affine: whether to learn a weight and a bias.
        device: where the parameters live; ``"meta"`` makes abstract ones.
        dtype: of the parameters; float32 when None.
        bias: whether to learn a bias as well as a weight.

    State: ``weight``, ones, and ``bias``, zeros, (C,).

    Reference: Wu and He, Group Normalization, 2018.
    """

    num_groups: int
    num_channels: int
    eps: float = 1e-5
    affine: bool = True
    device: Any = None
    dtype: Any = None
    use_bias: bool = config(default=True, alias="bias")
    weight: Array | None = param()
    bias: Array | None = param()

    def validate(self) -> None:
        checks.integer(self, "num_groups", self.num_groups, 1)
        checks.integer(self, "num_channels", self.num_channels, 0)
        ok = self.num_channels % self.num_groups == 0
        checks.require(ok, self, "num_groups must divide num_channels", num_groups=self.num_groups, num_channels=self.num_channels)

    def setup(self, key: Array) -> dict[str, Array | None]:
        return ones_and_zeros(self, (self.num_channels,), self.dtype, self.affine, self.use_bias)

    def compute(self, s: Any, input: Array) -> Array:
        return group_norm(input, self.num_groups, s.weight, s.bias, self.eps)

    def extra_repr(self) -> str:
        use_bias = self.affine and self.use_bias
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}, bias={use_bias}"


@function
def _across_channels(
    input: Array, who: str, size: int, before: int, after: int, alpha: float, beta: float, k: float, first_stays: bool = False
) -> Array:
    """``x / (k + alpha / size * sum x^2)^beta``, the sum over ``before`` channels, the channel itself and ``after`` channels.

    With ``first_stays``, the first channel is in every sum.
    """
    checks.integer(who, "size", size)
    checks.require(size > 0, who, "size must be positive", RuntimeError, size=size)
    checks.floating(who, "input", input)
    square = jnp.square(input.astype(dtypes.accumulator(input.dtype)))
    window = (1, before + 1 + after) + (1,) * (input.ndim - 2)
    padding = ((0, 0), (before, after)) + ((0, 0),) * (input.ndim - 2)
    total = lax.reduce_window(square, np.zeros((), square.dtype), lax.add, window, (1,) * input.ndim, padding)
    if first_stays:
        total = jnp.concatenate([total[:, : before + 1], total[:, before + 1 :] + square[:, :1]], 1)
    return (input * (k + alpha / size * total) ** -beta).astype(input.dtype)


@function
def local_response_norm(input: Array, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Array:
    """``y = x / (k + alpha / size * sum x^2)^beta``, the sum taken over ``size`` neighbouring channels.

    Shape: input (N, C, *) of three dimensions at least, output the same.

    Args:
        size: number of channels in the sum; of an even number, one more stands before the channel than after it.
        alpha, beta, k: the factor, exponent and constant of the divisor.

    Raises:
        ValueError: the input has fewer than three dimensions.
    """
    checks.require(input.ndim >= 3, "local_response_norm", "input must have at least three dimensions", input=input)
    return _across_channels(input, "local_response_norm", size, size // 2, (size - 1) // 2, alpha, beta, k)


@layer
class _ResponseNorm(Layer):
    size: int
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


class LocalResponseNorm(_ResponseNorm):
    """Divides each value by its neighbours in other channels: ``y = x / (k + alpha / size * sum x^2)^beta``.

    Shape: input (N, C, *) of three dimensions at least, output the same.

    Args:
        size: number of channels in the sum; of an even number, one more stands before the channel than after it.
        alpha, beta, k: the factor, exponent and constant of the divisor.

    Reference: Krizhevsky, Sutskever and Hinton, ImageNet Classification with Deep Convolutional Neural Networks, 2012.
    """

    def compute(self, s: Any, input: Array) -> Array:
        return local_response_norm(input, self.size, self.alpha, self.beta, self.k)


@layer
class CrossMapLRN2d(_ResponseNorm):
    """:class:`LocalResponseNorm` for images, as Caffe and Torch 7 have it.

    The sum takes ``(size - 1) // 2`` channels on either side, so that an even ``size`` sums over one fewer than it divides by.
    As in torch, the first channel stays in the sums of all channels after it.

    Shape: input (N, C, H, W), output the same.

    Differs from torch: the gradient is that of the output; torch's follows other windows than its output does.
    """

    k: float = 1

    def compute(self, s: Any, input: Array) -> Array:
        checks.rank(self, input, (4,), ValueError)
        half = (self.size - 1) // 2
        return _across_channels(input, type(self).__name__, self.size, half, half, self.alpha, self.beta, self.k, first_stays=True)


@function
def normalize(input: Array, p: float = 2.0, dim: int | tuple[int, ...] = 1, eps: float = 1e-12, out: None = None) -> Array:
    """``x / max(||x||_p, eps)``, the norm taken over ``dim``.

    Shape: input (*), output the same.

    Args:
        p: the degree of the norm.
        dim: the dimension or dimensions of the vectors.
        eps: the least length that is divided by.
        out: accepted for torch's signature; only None, for arrays are immutable.

    Raises:
        IndexError: there is no such dimension.
        RuntimeError: the input is not floating point.
        NotImplementedError: ``out`` is given.
    """
    checks.require(out is None, "normalize", "arrays are immutable, use what is returned instead of out=", NotImplementedError)
    checks.floating("normalize", "input", input)
    dims = dim if isinstance(dim, tuple) else (dim,)
    axes = tuple(checks.dim("normalize", d, input.ndim) for d in dims) if input.ndim else None
    x = input.astype(dtypes.accumulator(input.dtype))
    length = vector_norm(x, p, axes, keepdims=True)
    return (x / jnp.where(length < eps, eps, length)).astype(input.dtype)
