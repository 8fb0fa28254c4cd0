"""Activations that are linear on one side, or piecewise."""

from __future__ import annotations

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import checks, dtypes, rng
from ..core.function import function
from ..core.spec import config, layer, param
from ..kernels.pointwise import over_rows
from .activation import Activation, pointwise, unary

Array = jax.Array
SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946


# Every piece that is differentiated is chosen by a comparison, never by minimum or maximum, which share the derivative at a tie. NaN
# compares as false and falls through to the input. A piece that may overflow where it is not chosen reads ``_below`` instead.


def _below(x: Array) -> Array:
    """``x`` where it is not positive, else 0."""
    return jnp.where(x > 0, 0, x)


def _sloped(x: Array, slope: Array) -> Array:
    """``x`` where it is positive, else ``slope x``."""
    return jnp.where(x > 0, x, slope * _below(x))


def _real(who: str, x: Array) -> None:
    real = jnp.issubdtype(x.dtype, np.floating) or jnp.issubdtype(x.dtype, np.integer)
    checks.require(real, who, "input must be of real numbers", NotImplementedError, **{"input.dtype": x.dtype})


@function
def relu(input: Array, inplace: bool = False) -> Array:
    """``max(x, 0)``; the derivative at 0 is 0."""
    _real("relu", input)
    return over_rows(lambda x: jnp.where(x <= 0, 0, x), input)


@function
def hardtanh(input: Array, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Array:
    """``x`` limited to [min_val, max_val]; the derivative at the limits is 0.

    Raises:
        ValueError: ``min_val`` exceeds ``max_val``.
        RuntimeError: a limit is negative and the dtype unsigned.
    """
    _real("hardtanh", input)
    checks.require(min_val <= max_val, "hardtanh", "min_val must not exceed max_val", min_val=min_val, max_val=max_val)
    signed = not jnp.issubdtype(input.dtype, np.unsignedinteger)
    checks.require(signed or min_val >= 0, "hardtanh", "unsigned input needs limits that are not negative", RuntimeError, min_val=min_val)
    low, high = jnp.asarray(min_val, input.dtype), jnp.asarray(max_val, input.dtype)
    return over_rows(lambda x: jnp.where(x <= low, low, jnp.where(x >= high, high, x)), input)


@function
def relu6(input: Array, inplace: bool = False) -> Array:
    """``min(max(x, 0), 6)``; the derivative at 0 and at 6 is 0."""
    return hardtanh(input, 0.0, 6.0)


@function
def threshold(input: Array, threshold: float, value: float, inplace: bool = False) -> Array:
    """``x`` where it exceeds ``threshold``, else ``value``."""
    _real("threshold", input)
    return over_rows(lambda x: jnp.where(x <= threshold, jnp.asarray(value, x.dtype), x), input)


@pointwise
def leaky_relu(input: Array, negative_slope: float = 0.01, inplace: bool = False) -> Array:
    """``x`` where it is positive, else ``negative_slope x``."""
    return jnp.where(input > 0, input, negative_slope * input)


@function
def prelu(input: Array, weight: Array) -> Array:
    """``x`` where it is positive, else ``weight x``, with one weight for all channels or one for each.

    Shape: input (N, C, *) or any for one weight; weight (C,), (1,) or (); output as input.

    Raises:
        RuntimeError: ``weight`` has more than one dimension, another dtype, or another size than C.
    """
    checks.rank("prelu", weight, (0, 1), name="weight")
    checks.same_dtype("prelu", input=input, weight=weight)
    checks.floating("prelu", "input", input)
    shapes = {"weight.shape": weight.shape, "input.shape": input.shape}
    if weight.size == 1:
        weight = weight.reshape(())
    else:
        fits = input.ndim > 0 and weight.size == (input.shape[1] if input.ndim > 1 else 1)
        checks.require(fits, "prelu", "weight must have one element or one for each channel", RuntimeError, **shapes)
        weight = weight.reshape(-1, *(1,) * (input.ndim - 2))
    return over_rows(_sloped, input, jnp.broadcast_to(weight, input.shape))


@function(jit=False)
def rrelu(
    input: Array,
    lower: float = 1.0 / 8,
    upper: float = 1.0 / 3,
    training: bool = False,
    inplace: bool = False,
    *,
    key: Array | None = None,
) -> Array:
    """``x`` where it is positive, else ``a x``: a ~ U(lower, upper) in training, else their mean.

    Args:
        key: feeds the draw; the running call's stream where None.

    Raises:
        RuntimeError: ``lower`` exceeds ``upper``, or one is not finite.
    """
    limits = {"lower": lower, "upper": upper}
    checks.require(math.isfinite(lower) and math.isfinite(upper), "rrelu", "lower and upper must be finite", RuntimeError, **limits)
    checks.require(lower <= upper, "rrelu", "lower must not exceed upper", RuntimeError, **limits)
    if not training:
        return leaky_relu(input, (lower + upper) / 2)
    return _rrelu(input, rng.next_key("rrelu", key), lower, upper)


@unary
def _rrelu(input: Array, key: Array, lower: float, upper: float) -> Array:
    slope = jax.random.uniform(key, input.shape, input.dtype, lower, upper)
    return over_rows(_sloped, input, slope)


def _exponential(x: Array, alpha: float, scale: float, inner: float) -> Array:
    """``scale x`` where x is positive, else ``scale alpha (exp(inner x) - 1)``."""
    return jnp.where(x > 0, scale * x, scale * alpha * jnp.expm1(inner * _below(x)))


@pointwise
def elu(input: Array, alpha: float = 1.0, inplace: bool = False) -> Array:
    """``x`` where it is positive, else ``alpha (exp(x) - 1)``; the derivative at 0 is alpha."""
    return _exponential(input, alpha, 1.0, 1.0)


@pointwise
def selu(input: Array, inplace: bool = False) -> Array:
    """``scale x`` where it is positive, else ``scale alpha (exp(x) - 1)``, scale = 1.0507, alpha = 1.6733."""
    return _exponential(input, SELU_ALPHA, SELU_SCALE, 1.0)


@pointwise
def celu(input: Array, alpha: float = 1.0, inplace: bool = False) -> Array:
    """``x`` where it is positive, else ``alpha (exp(x / alpha) - 1)``.

    Raises:
        RuntimeError: ``alpha`` is 0.
    """
    checks.require(alpha != 0, "celu", "alpha must not be 0", RuntimeError, alpha=alpha)
    return _exponential(input, alpha, 1.0, 1.0 / alpha)


@pointwise
def hardshrink(input: Array, lambd: float = 0.5) -> Array:
    """0 where ``-lambd <= x <= lambd``, else ``x``."""
    return jnp.where((input >= -lambd) & (input <= lambd), 0, input)


@pointwise
def softshrink(input: Array, lambd: float = 0.5) -> Array:
    """``x`` moved towards 0 by ``lambd``, and 0 where ``-lambd <= x <= lambd``.

    Raises:
        RuntimeError: ``lambd`` is negative.
    """
    checks.require(lambd >= 0, "softshrink", "lambd must not be negative", RuntimeError, lambd=lambd)
    return jnp.where((input >= -lambd) & (input <= lambd), 0, jnp.where(input > 0, input - lambd, input + lambd))


@jax.custom_jvp
def _hard_sigmoid(x: Array) -> Array:
    return jnp.clip(x + 3, 0, 6) / 6


@_hard_sigmoid.defjvp
def _hard_sigmoid_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (moved,) = primals, tangents
    return _hard_sigmoid(x), jnp.where((x > -3) & (x < 3), moved * (1 / 6), 0)


@jax.custom_jvp
def _hard_swish(x: Array) -> Array:
    return x * jnp.clip(x + 3, 0, 6) / 6


@_hard_swish.defjvp
def _hard_swish_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (moved,) = primals, tangents
    return _hard_swish(x), moved * jnp.where(x <= -3, 0, jnp.where(x >= 3, 1, x / 3 + 0.5))


@pointwise
def hardsigmoid(input: Array, inplace: bool = False) -> Array:
    """``x / 6 + 1 / 2`` limited to [0, 1]; the derivative at -3 and at 3 is 0."""
    return _hard_sigmoid(input)


@pointwise
def hardswish(input: Array, inplace: bool = False) -> Array:
    """``x hardsigmoid(x)``; the derivative is 0 at -3 and 1 at 3."""
    return _hard_swish(input)


@layer
class ReLU(Activation):
    """``max(x, 0)``; the derivative at 0 is 0.

    Shape: input (*), output (*).

    Args:
        inplace: accepted; changes nothing.
    """

    inplace: bool = False

    def compute(self, s: Any, input: Array) -> Array:
        return relu(input)


@layer
class Hardtanh(Activation):
    """``x`` limited to [min_val, max_val]; the derivative at the limits is 0.

    Shape: input (*), output (*).

    Args:
        min_val: the lower limit.
        max_val: the upper limit.
        inplace: accepted; changes nothing.
        min_value, max_value: deprecated names of the limits.

    Raises:
        AssertionError: ``max_val`` does not exceed ``min_val``.
    """

    min_val: float = -1.0
    max_val: float = 1.0
    inplace: bool = False
    min_value: float | None = None
    max_value: float | None = None

    def validate(self) -> None:
        for old, new in (("min_value", "min_val"), ("max_value", "max_val")):
            value = getattr(self, old)
            if value is not None:
                warnings.warn(f"{type(self).__name__}: {old} is deprecated, use {new}", FutureWarning, stacklevel=3)
                self._set(**{new: value, old: None})
        ordered = self.max_val > self.min_val
        checks.require(ordered, self, "max_val must exceed min_val", AssertionError, min_val=self.min_val, max_val=self.max_val)

    def compute(self, s: Any, input: Array) -> Array:
        return hardtanh(input, self.min_val, self.max_val)

    def extra_repr(self) -> str:
        return f"min_val={self.min_val}, max_val={self.max_val}" + ", inplace=True" * self.inplace


@layer
class ReLU6(Activation):
    """``min(max(x, 0), 6)``; the derivative at 0 and at 6 is 0.

    Shape: input (*), output (*).

    Args:
        inplace: accepted; changes nothing.
    """

    inplace: bool = False

    def compute(self, s: Any, input: Array) -> Array:
        return relu6(input)


@layer
class Threshold(Activation):
    """``x`` where it exceeds ``threshold``, else ``value``.

    Shape: input (*), output (*).

    Args:
        threshold: what the input is compared with.
        value: what replaces the rest.
        inplace: accepted; changes nothing.
    """

    threshold: float
    value: float
    inplace: bool = False

    def compute(self, s: Any, input: Array) -> Array:
        return threshold(input, self.threshold, self.value)


@layer
class LeakyReLU(Activation):
    """``x`` where it is positive, else ``negative_slope x``.

    Shape: input (*), output (*).

    Args:
        negative_slope: the slope below 0.
        inplace: accepted; changes nothing.
    """

    negative_slope: float = 0.01
    inplace: bool = False

    def compute(self, s: Any, input: Array) -> Array:
        return leaky_relu(input, self.negative_slope)


@layer
class PReLU(Activation):
    """``x`` where it is positive, else ``weight x``, with a learned weight.

    Shape: input (N, C, *), or any for one parameter; output as input.

    Args:
        num_parameters: 1, or the number of channels C.
        init: the weight at first.
        device: where the weight lives.
        dtype: of the weight; float32 when None.

    State: ``weight`` (num_parameters,), equal to ``init``.

    Reference: He et al., Delving Deep into Rectifiers, 2015.
    """

    num_parameters: int = 1
    initial: float = config(default=0.25, alias="init")
    device: Any = None
    dtype: Any = None
    weight: Array = param()

    def setup(self, key: Array) -> dict[str, Array | None]:
        return {"weight": jnp.full(self.num_parameters, self.initial, dtypes.parameter(self, self.dtype))}

    def compute(self, s: Any, input: Array) -> Array:
        return prelu(input, s.weight)

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}"


@layer
class RReLU(Activation):
    """``x`` where it is positive, else ``a x``: a ~ U(lower, upper) for each element in training, else their mean.

    Shape: input (*), output (*).

    Args:
        lower, upper: the limits of the slope.
        inplace: accepted; changes nothing.

    Reference: Xu et al., Empirical Evaluation of Rectified Activations in Convolutional Network, 2015.
    """

    lower: float = 1.0 / 8
    upper: float = 1.0 / 3
    inplace: bool = False

    def compute(self, s: Any, input: Array) -> Array:
        return rrelu(input, self.lower, self.upper, s.training)


@layer
class ELU(Activation):
    """``x`` where it is positive, else ``alpha (exp(x) - 1)``.

    Shape: input (*), output (*).

    Args:
        alpha: minus the limit at minus infinity.
        inplace: accepted; changes nothing.

    Reference: Clevert et al., Fast and Accurate Deep Network Learning by Exponential Linear Units, 2015.
    """

    alpha: float = 1.0
    inplace: bool = False

    def compute(self, s: Any, input: Array) -> Array:
        return elu(input, self.alpha)


@layer
class CELU(Activation):
    """``x`` where it is positive, else ``alpha (exp(x / alpha) - 1)``, which has no kink for any ``alpha > 0``.

    Shape: input (*), output (*).

    Args:
        alpha: minus the limit at minus infinity.
        inplace: accepted; changes nothing.

    Reference: Barron, Continuously Differentiable Exponential Linear Units, 2017.
    """

    alpha: float = 1.0
    inplace: bool = False

    def compute(self, s: Any, input: Array) -> Array:
        return celu(input, self.alpha)


@layer
class SELU(Activation):
    """``scale x`` where it is positive, else ``scale alpha (exp(x) - 1)``, scale = 1.0507, alpha = 1.6733.

    Shape: input (*), output (*).

    Args:
        inplace: accepted; changes nothing.

    Reference: Klambauer et al., Self-Normalizing Neural Networks, 2017.
    """

    inplace: bool = False

    def compute(self, s: Any, input: Array) -> Array:
        return selu(input)


@layer
class Hardshrink(Activation):
    """0 where ``-lambd <= x <= lambd``, else ``x``.

    Shape: input (*), output (*).

    Args:
        lambd: half the width of the band.
    """

    lambd: float = 0.5

    def compute(self, s: Any, input: Array) -> Array:
        return hardshrink(input, self.lambd)

    def extra_repr(self) -> str:
        return f"{self.lambd}"


@layer
class Softshrink(Activation):
    """``x`` moved towards 0 by ``lambd``, and 0 where ``-lambd <= x <= lambd``.

    Shape: input (*), output (*).

    Args:
        lambd: half the width of the band; not negative.
    """

    lambd: float = 0.5

    def compute(self, s: Any, input: Array) -> Array:
        return softshrink(input, self.lambd)

    def extra_repr(self) -> str:
        return f"{self.lambd}"


@layer
class Hardsigmoid(Activation):
    """``x / 6 + 1 / 2`` limited to [0, 1].

    Shape: input (*), output (*).

    Args:
        inplace: accepted; changes nothing.
    """

    inplace: bool = False

    def compute(self, s: Any, input: Array) -> Array:
        return hardsigmoid(input)

    def extra_repr(self) -> str:
        return ""


@layer
class Hardswish(Activation):
    """``x hardsigmoid(x)``.

    Shape: input (*), output (*).

    Args:
        inplace: accepted; changes nothing.

    Reference: Howard et al., Searching for MobileNetV3, 2019.
    """

    inplace: bool = False

    def compute(self, s: Any, input: Array) -> Array:
        return hardswish(input)

    def extra_repr(self) -> str:
        return ""
