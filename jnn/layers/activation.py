"""Smooth activations of every element, and gated linear units."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ParamSpec, cast, overload

import jax
import jax.numpy as jnp
import numpy as np

from ..core import checks, dtypes
from ..core.function import function
from ..core.spec import Layer, layer
from ..kernels import activations as kernel
from ..kernels import glu as gated
from ..kernels.pointwise import over_rows

Array = jax.Array
P = ParamSpec("P")


def unary(fn: Callable[P, Array], kind: Any = np.floating, over: Callable[..., Array] | None = None) -> Callable[P, Array]:
    """Make a public function of one array ``input`` of a dtype under ``kind``; half types are computed in float32.

    ``over`` calls what it is given with the array.
    """
    name, of = fn.__name__.lstrip("_"), cast("Any", fn)

    @function
    @functools.wraps(fn)
    def call(input: Array, *args: Any, **kwargs: Any) -> Array:
        checks.require(
            jnp.issubdtype(input.dtype, kind), name, "input must be floating point", NotImplementedError, **{"input.dtype": input.dtype}
        )

        def run(x: Array) -> Array:
            return of(x.astype(dtypes.accumulator(x.dtype)), *args, **kwargs).astype(x.dtype)

        return run(input) if over is None else over(run, input)

    return call


@overload
def pointwise(fn: Callable[P, Array], /) -> Callable[P, Array]: ...
@overload
def pointwise(*, kind: Any) -> Callable[[Callable[P, Array]], Callable[P, Array]]: ...
def pointwise(fn: Any = None, /, *, kind: Any = np.floating) -> Any:
    """:func:`unary` of functions of each element by itself."""
    if fn is None:
        return functools.partial(pointwise, kind=kind)
    return unary(fn, kind, over_rows)


def inexact(input: Array) -> Array:
    """``input``, integers and booleans as the default floating dtype: float32, as in torch."""
    return input if jnp.issubdtype(input.dtype, np.inexact) else input.astype(np.float32)


class Activation(Layer):
    """Base of activations: prints its configuration, ``inplace`` only where it is set.

    ``inplace`` is accepted by every activation that has it in torch, and changes nothing: arrays are immutable.
    """

    def extra_repr(self) -> str:
        """The fields as ``name=value``."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        return ", ".join(f"{name}={value!r}" for name, value in values.items() if name != "inplace" or value)


@function
def sigmoid(input: Array) -> Array:
    """``1 / (1 + exp(-x))``. Integers give float32."""
    return over_rows(jax.nn.sigmoid, inexact(input), slope=lambda y: y * (1 - y))


@function
def tanh(input: Array) -> Array:
    """``tanh(x)``. Integers give float32."""
    return over_rows(jnp.tanh, inexact(input), slope=lambda y: 1 - y * y)


@function
def tanhshrink(input: Array) -> Array:
    """``x - tanh(x)``. Integers give float32."""

    def run(x: Array) -> Array:
        wide = x.astype(dtypes.accumulator(x.dtype))
        return (wide - jnp.tanh(wide)).astype(x.dtype)

    return over_rows(run, inexact(input))


@function
def softsign(input: Array) -> Array:
    """``x / (1 + |x|)``. Integers give float32."""
    return over_rows(lambda x: x / (1 + jnp.abs(x)), inexact(input))


@pointwise
def softplus(input: Array, beta: float = 1.0, threshold: float = 20.0) -> Array:
    """``log(1 + exp(beta x)) / beta``, and ``x`` itself where ``beta x > threshold``."""
    return kernel.scaled(input, beta, threshold)


@pointwise
def logsigmoid(input: Array) -> Array:
    """``log(1 / (1 + exp(-x)))``."""
    return kernel.scaled(input, -1.0, math.inf)


@pointwise
def gelu(input: Array, *, approximate: str = "none") -> Array:
    """``x Phi(x)``, Phi the normal distribution function.

    Args:
        approximate: "none", or "tanh" for ``0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))``.

    Raises:
        RuntimeError: ``approximate`` is neither.

    Reference: Hendrycks and Gimpel, Gaussian Error Linear Units, 2016.
    """
    known = approximate in ("none", "tanh")
    checks.require(known, "gelu", "approximate must be 'none' or 'tanh'", RuntimeError, approximate=approximate)
    if approximate == "tanh":
        return 0.5 * input * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (input + 0.044715 * input**3)))
    return 0.5 * input * (1 + jax.lax.erf(input * math.sqrt(0.5)))


@pointwise(kind=np.inexact)
def silu(input: Array, inplace: bool = False) -> Array:
    """``x sigmoid(x)``, also known as swish."""
    return kernel.silu(input)


@pointwise
def mish(input: Array, inplace: bool = False) -> Array:
    """``x tanh(log(1 + exp(x)))``."""
    return input * jnp.tanh(kernel.softplus(input))


@unary
def glu(input: Array, dim: int = -1) -> Array:
    """``a sigmoid(b)``, where a and b are the two halves of ``input`` along ``dim``.

    Shape: input (*, 2n, *), output (*, n, *).

    Raises:
        RuntimeError: ``input`` is a scalar, or its size along ``dim`` is odd.
    """
    checks.require(input.ndim, "glu", "input must have at least one dimension", RuntimeError, **{"input.shape": input.shape})
    axis = checks.dim("glu", dim, input.ndim)
    checks.require(
        input.shape[axis] % 2 == 0, "glu", "input must have an even size along dim", RuntimeError, dim=dim, **{"input.shape": input.shape}
    )
    return gated.glu(input, axis)


@layer
class Sigmoid(Activation):
    """``1 / (1 + exp(-x))``.

    Shape: input (*), output (*).
    """

    def compute(self, s: Any, input: Array) -> Array:
        return sigmoid(input)


@layer
class Tanh(Activation):
    """``tanh(x)``.

    Shape: input (*), output (*).
    """

    def compute(self, s: Any, input: Array) -> Array:
        return tanh(input)


@layer
class Tanhshrink(Activation):
    """``x - tanh(x)``.

    Shape: input (*), output (*).
    """

    def compute(self, s: Any, input: Array) -> Array:
        return tanhshrink(input)


@layer
class Softsign(Activation):
    """``x / (1 + |x|)``.

    Shape: input (*), output (*).
    """

    def compute(self, s: Any, input: Array) -> Array:
        return softsign(input)


@layer
class Softplus(Activation):
    """``log(1 + exp(beta x)) / beta``, a smooth ReLU.

    Shape: input (*), output (*).

    Args:
        beta: sharpness.
        threshold: where ``beta x`` exceeds it the output is ``x`` itself.
    """

    beta: float = 1.0
    threshold: float = 20.0

    def compute(self, s: Any, input: Array) -> Array:
        return softplus(input, self.beta, self.threshold)


@layer
class LogSigmoid(Activation):
    """``log(1 / (1 + exp(-x)))``.

    Shape: input (*), output (*).
    """

    def compute(self, s: Any, input: Array) -> Array:
        return logsigmoid(input)


@layer
class GELU(Activation):
    """``x Phi(x)``, Phi the normal distribution function.

    Shape: input (*), output (*).

    Args:
        approximate: "none", or "tanh" for ``0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))``.

    Reference: Hendrycks and Gimpel, Gaussian Error Linear Units, 2016.
    """

    approximate: str = "none"

    def compute(self, s: Any, input: Array) -> Array:
        return gelu(input, approximate=self.approximate)


@layer
class SiLU(Activation):
    """``x sigmoid(x)``, also known as swish.

    Shape: input (*), output (*).

    Args:
        inplace: accepted; changes nothing.

    Reference: Elfwing et al., Sigmoid-weighted Linear Units, 2017.
    """

    inplace: bool = False

    def compute(self, s: Any, input: Array) -> Array:
        return silu(input)


@layer
class Mish(Activation):
    """``x tanh(log(1 + exp(x)))``.

    Shape: input (*), output (*).

    Args:
        inplace: accepted; changes nothing.

    Reference: Misra, Mish: A Self Regularized Non-Monotonic Activation Function, 2019.
    """

    inplace: bool = False

    def compute(self, s: Any, input: Array) -> Array:
        return mish(input)


@layer
class GLU(Activation):
    """``a sigmoid(b)``, where a and b are the two halves of the input along ``dim``.

    Shape: input (*, 2n, *), output (*, n, *).

    Args:
        dim: the dimension to halve.

    Reference: Dauphin et al., Language Modeling with Gated Convolutional Networks, 2016.
    """

    dim: int = -1

    def compute(self, s: Any, input: Array) -> Array:
        return glu(input, self.dim)
