"""Affine maps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import checks, dtypes
from ..core.function import function
from ..core.initial import uniform_fan_in
from ..core.spec import Layer, config, layer, param
from ..kernels import linear as kernel

Array = jax.Array


@function
def linear(input: Array, weight: Array, bias: Array | None = None) -> Array:
    """``y = x A^T + b``.

    Shape: input (*, in_features), weight (out_features, in_features) or (in_features,), bias (out_features,) or ();
        output (*, out_features), or (*) for a weight of one dimension.

    Raises:
        RuntimeError: the last dimensions of input and weight differ, or the dtypes do.
    """
    checks.rank("linear", weight, (1, 2), name="weight")
    checks.same_dtype("linear", input=input, weight=weight, bias=bias)
    checks.require(input.ndim >= 1, "linear", "input must have at least one dimension", RuntimeError, shape=input.shape)
    checks.require(
        input.shape[-1] == weight.shape[-1],
        "linear",
        "the last dimensions of input and weight must be equal",
        RuntimeError,
        **{"input.shape": input.shape, "weight.shape": weight.shape},
    )
    shape = (*input.shape[:-1], *weight.shape[:-1])
    ok = bias is None or (bias.ndim <= len(shape) and all(b in (1, n) for b, n in zip(bias.shape[::-1], shape[::-1], strict=False)))
    shapes = {"bias.shape": getattr(bias, "shape", None), "output.shape": shape}
    checks.require(ok, "linear", "bias must broadcast to the output", RuntimeError, **shapes)
    if weight.ndim == 2 and (bias is None or bias.shape == weight.shape[:1]):
        return kernel.linear(input, weight, bias)
    y = kernel.linear(input, jnp.atleast_2d(weight)).reshape(shape)
    return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


@function
def bilinear(input1: Array, input2: Array, weight: Array, bias: Array | None = None) -> Array:
    """``y_o = x1^T A_o x2 + b_o``.

    Shape: input1 (*, in1), input2 (*, in2), weight (out, in1, in2), bias (out,); output (*, out).

    Raises:
        RuntimeError: shapes or dtypes do not fit together.
    """
    arrays = {"input1": input1, "input2": input2, "weight": weight, "bias": bias}
    shapes = {f"{name}.shape": x.shape for name, x in arrays.items() if x is not None}
    checks.rank("bilinear", weight, (3,), name="weight")
    checks.same_dtype("bilinear", **arrays)
    checks.require(input1.ndim and input2.ndim, "bilinear", "inputs must have at least one dimension", RuntimeError, **shapes)
    batch = input1.shape[:-1]
    checks.require(input2.shape[:-1] == batch, "bilinear", "inputs must agree in all but the last dimension", RuntimeError, **shapes)
    fits = (input1.shape[-1], input2.shape[-1]) == weight.shape[1:] and (bias is None or bias.shape == weight.shape[:1])
    checks.require(fits, "bilinear", "weight must be (out, in1, in2) and bias (out,)", RuntimeError, **shapes)
    dtype = dtypes.accumulator(weight.dtype) if jnp.issubdtype(weight.dtype, jnp.inexact) else weight.dtype
    y = jnp.einsum("...i,oij,...j->...o", input1, weight, input2, preferred_element_type=dtype).astype(weight.dtype)
    return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


@function
def grouped_mm(mat_a: Array, mat_b: Array, *, offs: Array | None = None, bias: None = None, out_dtype: Any = None) -> Array:
    """One matrix product per group, as for a mixture of experts; the groups of a matrix are consecutive slices of one dimension.

    Shape: mat_a (M, K) and mat_b (G, K, N): rows are grouped, output (M, N); (G, M, K) and (K, N): columns are grouped, output
        (M, N); (M, K) and (K, N): the sum is grouped, output (G, M, N); (G, M, K) and (G, K, N): output (G, M, N).

    Args:
        offs: where each group ends, increasing integers (G,); for any input that is a matrix. What lies beyond the last
            one gives zeros.
        bias: accepted for torch's signature; only None, as there.
        out_dtype: of the output; that of mat_a when None.

    Raises:
        RuntimeError: shapes or dtypes do not fit, or ``offs`` is missing or not needed.

    Differs from torch: all floating point dtypes, all integer dtypes of ``offs``, and no rule for strides.
    """
    who = "grouped_mm"
    _check_groups(who, mat_a, mat_b, offs, bias)
    dtype = mat_a.dtype if out_dtype is None else dtypes.canonical(who, out_dtype)
    if offs is None:
        return jnp.matmul(mat_a, mat_b, preferred_element_type=dtype)
    # Masks and not lax.ragged_dot, which cannot be batched along every dimension. What is masked may be infinite.
    ends, starts = offs[:, None], jnp.roll(offs, 1).at[0].set(0)[:, None]
    length = mat_b.shape[-1] if mat_a.ndim == 3 else mat_a.shape[0 if mat_b.ndim == 3 else 1]
    place = jnp.arange(length)[None]
    own = (place >= starts) & (place < ends)
    if mat_a.ndim == mat_b.ndim:
        a, b = jnp.where(own[:, None], mat_a[None], 0), jnp.where(own[:, :, None], mat_b[None], 0)
        return jnp.matmul(a, b, preferred_element_type=dtype)
    a, b = (m if m.ndim == 3 else m[None] for m in (mat_a, mat_b))
    own = own[:, None] if mat_a.ndim == 3 else own[:, :, None]
    return jnp.sum(jnp.where(own, jnp.matmul(a, b, preferred_element_type=dtype), 0), 0)


def _check_groups(who: str, mat_a: Array, mat_b: Array, offs: Array | None, bias: Any) -> None:
    checks.require(bias is None, who, "a bias is not supported", RuntimeError, bias=bias)
    checks.rank(who, mat_a, (2, 3), name="mat_a")
    checks.rank(who, mat_b, (2, 3), name="mat_b")
    checks.floating(who, "mat_a", mat_a)
    checks.same_dtype(who, mat_a=mat_a, mat_b=mat_b)
    given = {"mat_a": mat_a, "mat_b": mat_b, "offs": offs}
    checks.require(mat_a.shape[-1] == mat_b.shape[-2], who, "the inner dimensions must be equal", RuntimeError, **given)
    ragged = mat_a.ndim == 2 or mat_b.ndim == 2
    checks.require(ragged == (offs is not None), who, "offs must be given for matrices, and for nothing else", RuntimeError, **given)
    ok = offs is None or (offs.ndim == 1 and jnp.issubdtype(offs.dtype, np.integer))
    checks.require(ok, who, "offs must be a vector of integers", RuntimeError, offs=offs)
    groups = [a.shape[0] for a in (mat_a, mat_b, offs) if a is not None and a.ndim != 2]
    checks.require(len(set(groups)) == 1, who, "the numbers of groups must be equal", RuntimeError, **given)


@layer
class Linear(Layer):
    """An affine map of the last dimension: ``y = x A^T + b``.

    Shape: input (*, in_features), output (*, out_features).

    Args:
        in_features: size of each input sample.
        out_features: size of each output sample.
        bias: whether to add a learned bias.
        device: where the parameters live; ``"meta"`` makes abstract ones.
        dtype: of the parameters; float32 when None.

    State: ``weight`` (out_features, in_features) and ``bias`` (out_features,), both U(-b, b), b = 1 / sqrt(in_features).
    """

    in_features: int
    out_features: int
    use_bias: bool = config(default=True, alias="bias")
    device: Any = None
    dtype: Any = None
    weight: Array = param()
    bias: Array | None = param()

    def validate(self) -> None:
        checks.integer(self, "in_features", self.in_features, 0)
        checks.integer(self, "out_features", self.out_features, 0)

    def setup(self, key: Array) -> dict[str, Array | None]:
        dtype, n = dtypes.parameter(self, self.dtype), self.in_features
        weight_key, bias_key = jax.random.split(key)
        return {
            "weight": uniform_fan_in(weight_key, (self.out_features, n), n, dtype),
            "bias": uniform_fan_in(bias_key, (self.out_features,), n, dtype) if self.use_bias else None,
        }

    def compute(self, s: Any, input: Array) -> Array:
        return linear(input, s.weight, s.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.use_bias}"


@layer
class Bilinear(Layer):
    """A bilinear map of the last dimensions of two inputs: ``y_o = x1^T A_o x2 + b_o``.

    Shape: input1 (*, in1_features), input2 (*, in2_features), output (*, out_features).

    Args:
        in1_features: size of each first input sample, at least 1.
        in2_features: size of each second input sample.
        out_features: size of each output sample.
        bias: whether to add a learned bias.
        device: where the parameters live; ``"meta"`` makes abstract ones.
        dtype: of the parameters; float32 when None.

    State: ``weight`` (out_features, in1_features, in2_features) and ``bias`` (out_features,), both U(-b, b),
        b = 1 / sqrt(in1_features).

    Raises:
        ValueError: a size is too small.
    """

    in1_features: int
    in2_features: int
    out_features: int
    use_bias: bool = config(default=True, alias="bias")
    device: Any = None
    dtype: Any = None
    weight: Array = param()
    bias: Array | None = param()

    def validate(self) -> None:
        checks.integer(self, "in1_features", self.in1_features, 1)
        checks.integer(self, "in2_features", self.in2_features, 0)
        checks.integer(self, "out_features", self.out_features, 0)

    def setup(self, key: Array) -> dict[str, Array | None]:
        dtype, n = dtypes.parameter(self, self.dtype), self.in1_features
        weight_key, bias_key = jax.random.split(key)
        return {
            "weight": uniform_fan_in(weight_key, (self.out_features, n, self.in2_features), n, dtype),
            "bias": uniform_fan_in(bias_key, (self.out_features,), n, dtype) if self.use_bias else None,
        }

    def compute(self, s: Any, input1: Array, input2: Array) -> Array:
        return bilinear(input1, input2, s.weight, s.bias)

    def extra_repr(self) -> str:
        sizes = f"in1_features={self.in1_features}, in2_features={self.in2_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.use_bias}"


@layer
class Identity(Layer):
    """Returns its input. Any constructor arguments are accepted and ignored.

    Shape: input (*), output (*).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._configured()

    def compute(self, s: Any, input: Array) -> Array:
        return input
