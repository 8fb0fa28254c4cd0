"""Initial values, as torch.nn.init and as pure functions.

A name with an underscore changes a Parameter or a Buffer in place and returns it, as in torch; ``generator`` is a jax
key, and without one the next of :func:`jnn.manual_seed`'s is drawn. The same name without the underscore is the pure
initialiser ``(key, shape, dtype, ...)`` behind it, which returns an array. (torch has deprecated aliases of these names,
which act in place: given a Parameter, so do ours, with the same warning.)

A weight's shape is torch's, (out, in, *receptive field); half types are drawn in float32 and rounded. Parameters on the
meta device stay as they are.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from .core import checks, dtypes, initial, rng
from .core.initial import fans

__all__ = [
    "calculate_gain",
    "constant",
    "constant_",
    "dirac",
    "dirac_",
    "eye",
    "eye_",
    "kaiming_normal",
    "kaiming_normal_",
    "kaiming_uniform",
    "kaiming_uniform_",
    "normal",
    "normal_",
    "ones",
    "ones_",
    "orthogonal",
    "orthogonal_",
    "sparse",
    "sparse_",
    "trunc_normal",
    "trunc_normal_",
    "uniform",
    "uniform_",
    "xavier_normal",
    "xavier_normal_",
    "xavier_uniform",
    "xavier_uniform_",
    "zeros",
    "zeros_",
]

P = ParamSpec("P")
V = TypeVar("V")
Array = jax.Array
Key = jax.Array | None
Shape = tuple[int, ...]
FanMode = Literal["fan_in", "fan_out"]

_GAINS = {
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d", "sigmoid"), 1.0),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), 1.0),
    "tanh": 5 / 3,
    "relu": math.sqrt(2),
    "selu": 3 / 4,
}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor by which weights before a nonlinearity are scaled so that it keeps the variance.

    Args:
        nonlinearity: its name in ``jnn.functional``, or a linear layer's.
        param: the negative slope of ``leaky_relu``; 0.01 when None.

    Raises:
        ValueError: the nonlinearity is unknown, or the slope no number.
    """
    if nonlinearity == "leaky_relu":
        slope: Any = 0.01 if param is None else param
        number = isinstance(slope, (int, float)) and not isinstance(slope, bool)
        checks.require(number, "calculate_gain", "the negative slope must be a number", ValueError, param=param)
        return math.sqrt(2 / (1 + slope**2))
    if nonlinearity not in _GAINS:
        checks.fail("calculate_gain", "nonlinearity must have a known gain", ValueError, nonlinearity=nonlinearity)
    return _GAINS[nonlinearity]


def _pure(initialiser: Callable[P, Array]) -> Callable[P, Array]:
    """A pure initialiser that, given a variable first, is torch's deprecated alias of the in-place one."""
    name = initialiser.__name__

    @functools.wraps(initialiser)
    def draw(*args: P.args, **kwargs: P.kwargs) -> Array:
        if not args or not hasattr(args[0], "copy_"):
            return initialiser(*args, **kwargs)
        warnings.warn(f"{name}: deprecated for parameters, use {name}_", FutureWarning, stacklevel=2)
        return globals()[f"{name}_"](*args, **kwargs)

    return draw


def _fill(tensor: V, initialiser: Callable[..., Array], generator: Key | Literal[False], *args: Any) -> V:
    """Write what a pure initialiser gives into a variable. ``generator`` False: it needs no key."""
    box: Any = tensor
    name = f"{initialiser.__name__}_"
    if not hasattr(box, "copy_"):
        rule = f"only a Parameter or a Buffer can be changed in place; jnn.init.{name[:-1]}(key, shape, dtype) gives an array"
        checks.fail(name, rule, TypeError, tensor=tensor)
    if not isinstance(box.detach(), jax.ShapeDtypeStruct):
        box.copy_(initialiser(None if generator is False else rng.next_key(name, generator), tuple(box.shape), box.dtype, *args))
    return tensor


# Without regard to the shape

uniform = _pure(initial.uniform)
normal = _pure(initial.normal)


def trunc_normal(
    key: Array, shape: Shape, dtype: Any = None, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0
) -> Array:
    """Draws from N(mean, std^2) given that they are in [a, b], by inverting the distribution function.

    Warns:
        UserWarning: ``mean`` is more than two ``std`` outside [a, b], where float32 has few values to choose from.
    """
    who = "trunc_normal"
    dtype = dtypes.parameter(who, dtype)
    checks.require(std > 0, who, "std must be positive", RuntimeError, std=std)
    checks.require(a <= b, who, "a must not be above b", RuntimeError, a=a, b=b)
    if mean < a - 2 * std or mean > b + 2 * std:
        warnings.warn(f"{who}: mean is more than 2 std outside [a, b], the distribution may be off", UserWarning, stacklevel=2)
    # In the lower tail, where the distribution function is exact, by symmetry.
    sign = -1 if a + b > 2 * mean else 1
    low, high = sorted((sign * (a - mean) / std, sign * (b - mean) / std))
    below, upto = (math.erfc(-z / math.sqrt(2)) / 2 for z in (low, high))
    z = ndtri(initial.uniform(key, shape, dtypes.accumulator(dtype), below, upto))
    return jnp.clip((mean + sign * std * z).astype(dtype), a, b)


@_pure
def constant(key: Key, shape: Shape, dtype: Any = None, val: float = 0.0) -> Array:
    """Every element ``val``; ``key`` may be None."""
    return jnp.full(shape, val, dtypes.parameter("constant", dtype))


def ones(key: Key, shape: Shape, dtype: Any = None) -> Array:
    """Every element 1; ``key`` may be None."""
    return jnp.ones(shape, dtypes.parameter("ones", dtype))


def zeros(key: Key, shape: Shape, dtype: Any = None) -> Array:
    """Every element 0; ``key`` may be None."""
    return jnp.zeros(shape, dtypes.parameter("zeros", dtype))


def uniform_(tensor: V, a: float = 0.0, b: float = 1.0, generator: Key = None) -> V:
    """Fill with draws from U(a, b)."""
    return _fill(tensor, initial.uniform, generator, a, b)


def normal_(tensor: V, mean: float = 0.0, std: float = 1.0, generator: Key = None) -> V:
    """Fill with draws from N(mean, std^2)."""
    return _fill(tensor, initial.normal, generator, mean, std)


def trunc_normal_(tensor: V, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0, generator: Key = None) -> V:
    """Fill with draws from N(mean, std^2) given that they are in [a, b]."""
    return _fill(tensor, trunc_normal, generator, mean, std, a, b)


def constant_(tensor: V, val: float) -> V:
    """Fill with ``val``."""
    return _fill(tensor, constant, False, val)


def ones_(tensor: V) -> V:
    """Fill with 1."""
    return _fill(tensor, ones, False)


def zeros_(tensor: V) -> V:
    """Fill with 0."""
    return _fill(tensor, zeros, False)


# Keeping the variance

xavier_uniform = _pure(initial.xavier_uniform)
xavier_normal = _pure(initial.xavier_normal)


def _kaiming(draw: Callable[[float], Array], who: str, shape: Shape, dtype: Any, a: float, mode: str, nonlinearity: str) -> Array:
    """``draw(std)`` with He's standard deviation."""
    if 0 in shape:
        warnings.warn(f"{who}: the tensor has no elements", UserWarning, stacklevel=4)
        return jnp.zeros(shape, dtypes.parameter(who, dtype))
    mode = mode.lower()
    checks.choice(who, "mode", mode, ("fan_in", "fan_out"))
    fan = fans(who, shape)[mode == "fan_out"]
    return draw(calculate_gain(nonlinearity, a) / math.sqrt(fan))


@_pure
def kaiming_uniform(
    key: Array, shape: Shape, dtype: Any = None, a: float = 0, mode: FanMode = "fan_in", nonlinearity: str = "leaky_relu"
) -> Array:
    """Draws from He's U(-b, b), ``b = gain * sqrt(3 / fan)``.

    Args:
        a: the negative slope that ``leaky_relu`` has.
        mode: ``"fan_in"`` keeps the variance forward, ``"fan_out"`` backward.
        nonlinearity: what follows the layer; see :func:`calculate_gain`.
    """

    def draw(std: float) -> Array:
        return initial.uniform(key, shape, dtype, -math.sqrt(3) * std, math.sqrt(3) * std)

    return _kaiming(draw, "kaiming_uniform", shape, dtype, a, mode, nonlinearity)


@_pure
def kaiming_normal(
    key: Array, shape: Shape, dtype: Any = None, a: float = 0, mode: FanMode = "fan_in", nonlinearity: str = "leaky_relu"
) -> Array:
    """Draws from He's N(0, std^2), ``std = gain / sqrt(fan)``; arguments as of :func:`kaiming_uniform`."""
    return _kaiming(lambda std: initial.normal(key, shape, dtype, 0.0, std), "kaiming_normal", shape, dtype, a, mode, nonlinearity)


def xavier_uniform_(tensor: V, gain: float = 1.0, generator: Key = None) -> V:
    """Fill with draws from Glorot's U(-b, b), ``b = gain * sqrt(6 / (fan_in + fan_out))``."""
    return _fill(tensor, initial.xavier_uniform, generator, gain)


def xavier_normal_(tensor: V, gain: float = 1.0, generator: Key = None) -> V:
    """Fill with draws from Glorot's N(0, std^2), ``std = gain * sqrt(2 / (fan_in + fan_out))``."""
    return _fill(tensor, initial.xavier_normal, generator, gain)


def kaiming_uniform_(tensor: V, a: float = 0, mode: FanMode = "fan_in", nonlinearity: str = "leaky_relu", generator: Key = None) -> V:
    """Fill with draws of :func:`kaiming_uniform`."""
    return _fill(tensor, kaiming_uniform, generator, a, mode, nonlinearity)


def kaiming_normal_(tensor: V, a: float = 0, mode: FanMode = "fan_in", nonlinearity: str = "leaky_relu", generator: Key = None) -> V:
    """Fill with draws of :func:`kaiming_normal`."""
    return _fill(tensor, kaiming_normal, generator, a, mode, nonlinearity)


# Matrices


def _matrix(who: str, shape: Shape) -> None:
    checks.require(len(shape) == 2, who, "only matrices are supported", ValueError, shape=shape)


@_pure
def eye(key: Key, shape: Shape, dtype: Any = None) -> Array:
    """The identity matrix, cut or padded with zeros; ``key`` may be None."""
    _matrix("eye", shape)
    return jnp.eye(*shape, dtype=dtypes.parameter("eye", dtype))


@_pure
def dirac(key: Key, shape: Shape, dtype: Any = None, groups: int = 1) -> Array:
    """A convolution's weight that passes on as many input channels as it can, in each group; ``key`` may be None.

    Args:
        groups: how many groups of output channels do so; it divides their number.
    """
    checks.require(len(shape) in (3, 4, 5), "dirac", "only weights of 3, 4 or 5 dimensions are supported", ValueError, shape=shape)
    checks.require(shape[0] % groups == 0, "dirac", "groups must divide the first size", ValueError, groups=groups, shape=shape)
    n = min(shape[0] // groups, shape[1])
    out = jnp.arange(groups)[:, None] * (shape[0] // groups) + jnp.arange(n)[None, :]
    centre = tuple(size // 2 for size in shape[2:])
    return jnp.zeros(shape, dtypes.parameter("dirac", dtype)).at[(out, jnp.arange(n)[None, :], *centre)].set(1)


@_pure
def orthogonal(key: Array, shape: Shape, dtype: Any = None, gain: float = 1.0) -> Array:
    """``gain`` times a uniformly distributed matrix of orthonormal rows or columns; sizes after the first are one.

    Reference: Saxe et al., Exact solutions to the nonlinear dynamics of learning in deep linear neural networks, 2014.
    """
    who = "orthogonal"
    dtype = dtypes.parameter(who, dtype)
    checks.require(len(shape) >= 2, who, "only weights of at least 2 dimensions are supported", ValueError, shape=shape)
    if 0 in shape:
        return jnp.zeros(shape, dtype)
    rows, cols = shape[0], math.prod(shape[1:])
    q, r = jnp.linalg.qr(initial.normal(key, (max(rows, cols), min(rows, cols)), dtypes.accumulator(dtype)))
    q = q * jnp.sign(jnp.diagonal(r))[None, :]
    return (gain * (q.T if rows < cols else q)).reshape(shape).astype(dtype)


@_pure
def sparse(key: Array, shape: Shape, dtype: Any = None, sparsity: float = 0.0, std: float = 0.01) -> Array:
    """Draws from N(0, std^2), with a random ``ceil(sparsity * rows)`` of each column zero.

    Reference: Martens, Deep learning via Hessian-free optimization, 2010.
    """
    _matrix("sparse", shape)
    values_key, rows_key = jax.random.split(key)
    rank = jnp.broadcast_to(jnp.arange(shape[0])[:, None], shape)
    kept = jax.random.permutation(rows_key, rank, axis=0, independent=True) >= math.ceil(sparsity * shape[0])
    return jnp.where(kept, initial.normal(values_key, shape, dtype, 0.0, std), 0)


def eye_(tensor: V) -> V:
    """Fill with the identity matrix, cut or padded with zeros."""
    return _fill(tensor, eye, False)


def dirac_(tensor: V, groups: int = 1) -> V:
    """Fill a convolution's weight so that it passes on as many input channels as it can; see :func:`dirac`."""
    return _fill(tensor, dirac, False, groups)


def orthogonal_(tensor: V, gain: float = 1, generator: Key = None) -> V:
    """Fill with ``gain`` times a random matrix of orthonormal rows or columns; see :func:`orthogonal`."""
    return _fill(tensor, orthogonal, generator, gain)


def sparse_(tensor: V, sparsity: float, std: float = 0.01, generator: Key = None) -> V:
    """Fill with draws from N(0, std^2), a fraction ``sparsity`` of each column with zeros."""
    return _fill(tensor, sparse, generator, sparsity, std)
