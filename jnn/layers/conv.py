"""Convolutions and transposed convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ..core import checks, dtypes
from ..core.function import function
from ..core.initial import uniform_fan_in
from ..core.spec import Layer, config, layer, param
from ..kernels import convolution
from ..kernels.taps import out_sizes
from .padding import pad

Array = jax.Array
Size = int | Sequence[int]
_MODES = ("zeros", "reflect", "replicate", "circular")


def _same(kernel: Sequence[int], dilation: Sequence[int]) -> list[tuple[int, int]]:
    """Padding that keeps the size at stride 1; the odd element goes to the right."""
    totals = [d * (k - 1) for k, d in zip(kernel, dilation)]
    return [(total // 2, total - total // 2) for total in totals]


def _pads(who: str, padding: Size | str, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> list[tuple[int, int]]:
    if not isinstance(padding, str):
        return [(p, p) for p in checks.ntuple(who, "padding", padding, len(kernel))]
    checks.require(padding in ("same", "valid"), who, "padding must be 'same', 'valid' or ints", RuntimeError, padding=padding)
    checks.require(padding == "valid" or max(stride) == 1, who, "padding 'same' needs stride 1", RuntimeError, stride=stride)
    return _same(kernel, dilation) if padding == "same" else [(0, 0)] * len(kernel)


def _check_arrays(who: str, n: int, input: Array, weight: Array, bias: Array | None, groups: int, transposed: bool) -> Array:
    """``input`` with a batch dimension, once the arrays are known to fit together."""
    checks.rank(who, input, (n + 1, n + 2))
    checks.rank(who, weight, (n + 2,), name="weight")
    checks.same_dtype(who, input=input, weight=weight, bias=bias)
    checks.require(input.dtype != bool, who, "input must be a number", NotImplementedError, dtype=input.dtype)
    checks.require(groups >= 1, who, "groups must be at least 1", RuntimeError, groups=groups)
    shapes = {"input.shape": input.shape, "weight.shape": weight.shape, "groups": groups}
    whole = weight.shape[0] >= groups and weight.shape[0] % groups == 0
    checks.require(whole, who, "groups must divide the first dimension of weight", RuntimeError, **shapes)
    in_channels, out_channels = weight.shape[1] * groups, weight.shape[0]
    if transposed:
        in_channels, out_channels = out_channels, in_channels
    checks.require(input.shape[-n - 1] == in_channels, who, f"input must have {in_channels} channels", RuntimeError, **shapes)
    checks.require(
        0 not in input.shape[-n:] and 0 not in weight.shape[2:], who, "spatial dimensions must not be empty", RuntimeError, **shapes
    )
    if bias is not None:
        checks.require(bias.shape == (out_channels,), who, f"bias must have shape ({out_channels},)", RuntimeError, shape=bias.shape)
    return input if input.ndim == n + 2 else input[None]


def _check_geometry(who: str, stride: Sequence[int], dilation: Sequence[int], *paddings: Sequence[int]) -> None:
    checks.require(min(stride) >= 1, who, "stride must be at least 1", RuntimeError, stride=stride)
    checks.require(min(dilation) >= 1, who, "dilation must be at least 1", RuntimeError, dilation=dilation)
    for padding in paddings:
        checks.require(min(padding) >= 0, who, "padding must not be negative", RuntimeError, padding=padding)


def _conv(
    n: int,
    input: Array,
    weight: Array,
    bias: Array | None,
    stride: Size,
    padding: Size | str,
    dilation: Size,
    groups: int,
    lowering: Callable[..., Array] = convolution.conv,
) -> Array:
    who = f"conv{n}d"
    stride, dilation = checks.ntuple(who, "stride", stride, n), checks.ntuple(who, "dilation", dilation, n)
    x = _check_arrays(who, n, input, weight, bias, checks.integer(who, "groups", groups), transposed=False)
    kernel = weight.shape[2:]
    pads = _pads(who, padding, kernel, stride, dilation)
    _check_geometry(who, stride, dilation, [low for low, _ in pads])
    fits = all(n >= 1 for n in out_sizes(x.shape[2:], kernel, stride, pads, dilation))
    checks.require(
        fits, who, "the dilated kernel must fit into the padded input", RuntimeError, input=x.shape[2:], kernel=kernel, padding=padding
    )
    y = lowering(x, weight, bias, stride=stride, padding=pads, dilation=dilation, groups=groups)
    return y if x is input else y[0]


def _conv_transpose(
    n: int,
    input: Array,
    weight: Array,
    bias: Array | None,
    stride: Size,
    padding: Size,
    output_padding: Size,
    groups: int,
    dilation: Size,
) -> Array:
    who = f"conv_transpose{n}d"
    stride, dilation = checks.ntuple(who, "stride", stride, n), checks.ntuple(who, "dilation", dilation, n)
    padding, extra = checks.ntuple(who, "padding", padding, n), checks.ntuple(who, "output_padding", output_padding, n)
    x = _check_arrays(who, n, input, weight, bias, checks.integer(who, "groups", groups), transposed=True)
    _check_geometry(who, stride, dilation, padding, extra)
    small = all(e < max(s, d) for e, s, d in zip(extra, stride, dilation))
    checks.require(small, who, "output_padding must be smaller than stride or dilation", RuntimeError, output_padding=extra)
    sizes = _smallest_output(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    some = all(size + e >= 1 for size, e in zip(sizes, extra))
    checks.require(some, who, "padding must leave something of the output", RuntimeError, input=x.shape[2:], padding=padding)
    y = convolution.conv_transpose(x, weight, bias, stride=stride, padding=padding, output_padding=extra, dilation=dilation, groups=groups)
    return y if x is input else y[0]


def _smallest_output(
    spatial: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    return [(n - 1) * s - 2 * p + d * (k - 1) + 1 for n, k, s, p, d in zip(spatial, kernel, stride, padding, dilation)]


@function
def conv1d(
    input: Array, weight: Array, bias: Array | None = None, stride: Size = 1, padding: Size | str = 0, dilation: Size = 1, groups: int = 1
) -> Array:
    """The cross-correlation of input and kernels: ``y[o, t] = b[o] + sum_{c, k} w[o, c, k] x[c, t * stride + k * dilation]``.

    Shape: input (N, C, L) or (C, L), weight (O, C / groups, K), bias (O,); output (N, O, M) or (O, M),
        M = floor((L + 2 padding - dilation (K - 1) - 1) / stride) + 1.

    Args:
        stride: elements between neighbouring outputs.
        padding: zeros on both sides; ``"valid"`` for none, ``"same"`` for M = L, where an odd one goes to the right.
        dilation: elements between neighbouring kernel elements.
        groups: into how many groups the channels are split, each seeing only its own inputs.

    Raises:
        RuntimeError: shapes or dtypes do not fit together, the kernel does not fit into the input, a stride, dilation or
            padding is out of range.
    """
    return _conv(1, input, weight, bias, stride, padding, dilation, groups)


@function
def conv2d(
    input: Array, weight: Array, bias: Array | None = None, stride: Size = 1, padding: Size | str = 0, dilation: Size = 1, groups: int = 1
) -> Array:
    """:func:`conv1d` in two dimensions: input (N, C, H, W) or (C, H, W), weight (O, C / groups, K_h, K_w)."""
    return _conv(2, input, weight, bias, stride, padding, dilation, groups)


@function
def conv3d(
    input: Array, weight: Array, bias: Array | None = None, stride: Size = 1, padding: Size | str = 0, dilation: Size = 1, groups: int = 1
) -> Array:
    """:func:`conv1d` in three dimensions: input (N, C, D, H, W) or (C, D, H, W), weight (O, C / groups, K_d, K_h, K_w)."""
    return _conv(3, input, weight, bias, stride, padding, dilation, groups)


@function
def conv_transpose1d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Array:
    """The transpose of :func:`conv1d` in its input, which is its input gradient; plus a bias.

    Shape: input (N, C, L) or (C, L), weight (C, O / groups, K), bias (O,); output (N, O, M) or (O, M),
        M = (L - 1) stride - 2 padding + dilation (K - 1) + output_padding + 1.

    Args:
        stride: elements by which neighbouring inputs are moved apart.
        padding: elements cut off on both sides of the output.
        output_padding: elements not cut off on the right, or added there; smaller than stride or than dilation.
        groups: into how many groups the channels are split, each seeing only its own inputs.
        dilation: elements between neighbouring kernel elements.

    Raises:
        RuntimeError: shapes or dtypes do not fit together, nothing is left of the output, an argument is out of range.
    """
    return _conv_transpose(1, input, weight, bias, stride, padding, output_padding, groups, dilation)


@function
def conv_transpose2d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Array:
    """:func:`conv_transpose1d` in two dimensions: input (N, C, H, W) or (C, H, W), weight (C, O / groups, K_h, K_w)."""
    return _conv_transpose(2, input, weight, bias, stride, padding, output_padding, groups, dilation)


@function
def conv_transpose3d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Array:
    """:func:`conv_transpose1d` in three dimensions: input (N, C, D, H, W) or (C, D, H, W), weight (C, O / groups, K_d, K_h, K_w)."""
    return _conv_transpose(3, input, weight, bias, stride, padding, output_padding, groups, dilation)


@function
def conv_tbc(input: Array, weight: Array, bias: Array, pad: int = 0) -> Array:
    """:func:`conv1d` of sequences with time first.

    Shape: input (T, N, C), weight (K, C, O), bias (O,); output (T + 2 pad - K + 1, N, O).

    Args:
        pad: zero steps before and after.

    Raises:
        RuntimeError: shapes do not fit together.
    """
    checks.rank("conv_tbc", input, (3,))
    checks.rank("conv_tbc", weight, (3,), name="weight")
    checks.require(isinstance(bias, jax.Array), "conv_tbc", "bias must be an array", TypeError, bias=bias)
    x, w = jnp.transpose(input, (1, 2, 0)), jnp.transpose(weight, (2, 1, 0))
    y = _conv(1, x, w, bias, 1, pad, 1, 1, lowering=convolution.conv_steps_first)
    return jnp.transpose(y, (2, 0, 1))


class _Convolution(Layer):
    """What the six layers share."""

    ndim: ClassVar[int]
    transposed: ClassVar[bool] = False
    in_channels: int
    out_channels: int
    kernel_size: Size
    stride: Size
    padding: Size | str
    dilation: Size
    output_padding: Size
    groups: int
    use_bias: bool
    padding_mode: str
    dtype: Any

    def validate(self) -> None:
        checks.integer(self, "in_channels", self.in_channels, 0)
        checks.integer(self, "out_channels", self.out_channels, 0)
        groups = checks.integer(self, "groups", self.groups, 1)
        for name in ("in_channels", "out_channels"):
            channels = getattr(self, name)
            checks.require(channels % groups == 0, self, f"groups must divide {name}", groups=groups, **{name: channels})
        for name, least in {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1, "output_padding": 0}.items():
            value = getattr(self, name, 0)
            if not isinstance(value, str):
                self._set(**{name: checks.ntuple(self, name, value, self.ndim, least)})
        if isinstance(self.padding, str):
            checks.choice(self, "padding", self.padding, ("same", "valid"))
            ok = self.padding == "valid" or max(self.stride) == 1  # type: ignore[arg-type]
            checks.require(ok, self, "padding 'same' needs stride 1", stride=self.stride)
        checks.choice(self, "padding_mode", self.padding_mode, ("zeros",) if self.transposed else _MODES)

    def setup(self, key: Array) -> dict[str, Array | None]:
        dtype, weight_key, bias_key = dtypes.parameter(self, self.dtype), *jax.random.split(key)
        first, second = (self.in_channels, self.out_channels) if self.transposed else (self.out_channels, self.in_channels)
        shape = (first, second // self.groups, *self.kernel_size)  # type: ignore[misc]
        fan_in = math.prod(shape[1:])
        return {
            "weight": uniform_fan_in(weight_key, shape, fan_in, dtype),
            "bias": uniform_fan_in(bias_key, (self.out_channels,), fan_in, dtype) if self.use_bias else None,
        }

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        for name, usual in {"padding": 0, "dilation": 1, "output_padding": 0}.items():
            value = getattr(self, name)
            text += "" if value == (usual,) * self.ndim else f", {name}={value}"
        text += f", groups={self.groups}" if self.groups != 1 else ""
        text += "" if self.use_bias else ", bias=False"
        return text + (f", padding_mode={self.padding_mode}" if self.padding_mode != "zeros" else "")


@layer
class _Conv(_Convolution):
    in_channels: int
    out_channels: int
    kernel_size: Size
    stride: Size = 1
    padding: Size | str = 0
    dilation: Size = 1
    groups: int = 1
    use_bias: bool = config(default=True, alias="bias")
    padding_mode: str = "zeros"
    device: Any = None
    dtype: Any = None
    weight: Array = param()
    bias: Array | None = param()

    def compute(self, s: Any, input: Array) -> Array:
        padding, arrays = self.padding, (s.weight, s.bias)
        if self.padding_mode != "zeros":
            pads = _pads(type(self).__name__, padding, self.kernel_size, self.stride, self.dilation)  # type: ignore[arg-type]
            input, padding = pad(input, sum(pads[::-1], ()), self.padding_mode), 0
        return _FUNCTIONS[self.transposed, self.ndim](input, *arrays, self.stride, padding, self.dilation, self.groups)


@layer
class _ConvTranspose(_Convolution):
    transposed = True
    in_channels: int
    out_channels: int
    kernel_size: Size
    stride: Size = 1
    padding: Size = 0
    output_padding: Size = 0
    groups: int = 1
    use_bias: bool = config(default=True, alias="bias")
    dilation: Size = 1
    padding_mode: str = "zeros"
    device: Any = None
    dtype: Any = None
    weight: Array = param()
    bias: Array | None = param()

    def compute(self, s: Any, input: Array, output_size: Sequence[int] | None = None) -> Array:
        extra = self.output_padding if output_size is None else self._output_padding(input, tuple(output_size))
        function = _FUNCTIONS[self.transposed, self.ndim]
        return function(input, s.weight, s.bias, self.stride, self.padding, extra, self.groups, self.dilation)

    def _output_padding(self, input: Array, output_size: tuple[int, ...]) -> tuple[int, ...]:
        """The output_padding that gives ``output_size``, with or without the leading dimensions."""
        n = self.ndim
        checks.rank(self, input, (n + 1, n + 2))
        known = len(output_size) in (n, input.ndim)
        checks.require(known, self, f"output_size must have {n} or {input.ndim} numbers", output_size=output_size)
        least = _smallest_output(input.shape[-n:], self.kernel_size, self.stride, self.padding, self.dilation)  # type: ignore[arg-type]
        extra = tuple(size - low for size, low in zip(output_size[-n:], least))
        most = [low + s - 1 for low, s in zip(least, self.stride)]  # type: ignore[arg-type]
        ok = all(0 <= e < s for e, s in zip(extra, self.stride))  # type: ignore[arg-type]
        checks.require(ok, self, f"output_size must be between {least} and {most}", output_size=output_size)
        return extra


@layer
class Conv1d(_Conv):
    """A bank of learned kernels slid over a sequence: ``y[o, t] = b[o] + sum_{c, k} w[o, c, k] x[c, t * stride + k * dilation]``.

    Shape: input (N, C, L) or (C, L), output (N, O, M) or (O, M), M = floor((L + 2 padding - dilation (K - 1) - 1) / stride) + 1.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: K.
        stride: elements between neighbouring outputs.
        padding: elements added on both sides; ``"valid"`` for none, ``"same"`` for M = L, where an odd one goes to the right.
        dilation: elements between neighbouring kernel elements.
        groups: into how many groups the channels are split, each seeing only its own inputs.
        bias: whether to add a learned bias.
        padding_mode: what is added: ``"zeros"``, or as :func:`pad` does for ``"reflect"``, ``"replicate"``, ``"circular"``.
        device: where the parameters live; ``"meta"`` makes abstract ones.
        dtype: of the parameters; float32 when None.

    State: ``weight`` (O, C / groups, K) and ``bias`` (O,), both U(-b, b), b = 1 / sqrt(C / groups * K).

    Raises:
        ValueError: groups does not divide the channels, an unknown padding or mode, ``"same"`` with a stride.
        RuntimeError: at the call, an input of other channels or rank, or too small for the kernel.
    """

    ndim = 1


@layer
class Conv2d(_Conv):
    """:class:`Conv1d` in two dimensions: input (N, C, H, W) or (C, H, W), ``weight`` (O, C / groups, K_h, K_w)."""

    ndim = 2


@layer
class Conv3d(_Conv):
    """:class:`Conv1d` in three dimensions: input (N, C, D, H, W) or (C, D, H, W), ``weight`` (O, C / groups, K_d, K_h, K_w)."""

    ndim = 3


@layer
class ConvTranspose1d(_ConvTranspose):
    """The transpose of :class:`Conv1d` in its input, with weights of its own: every input adds its multiple of the kernels to the output.

    Shape: input (N, C, L) or (C, L), output (N, O, M) or (O, M),
        M = (L - 1) stride - 2 padding + dilation (K - 1) + output_padding + 1.
        ``output_size``, (M,) or the whole shape, may be passed at the call instead of output_padding.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: K.
        stride: elements by which neighbouring inputs are moved apart.
        padding: elements cut off on both sides of the output.
        output_padding: elements not cut off on the right, or added there; smaller than stride or than dilation.
        groups: into how many groups the channels are split, each seeing only its own inputs.
        bias: whether to add a learned bias.
        dilation: elements between neighbouring kernel elements.
        padding_mode: ``"zeros"``.
        device: where the parameters live; ``"meta"`` makes abstract ones.
        dtype: of the parameters; float32 when None.

    State: ``weight`` (C, O / groups, K) and ``bias`` (O,), both U(-b, b), b = 1 / sqrt(O / groups * K).

    Raises:
        ValueError: groups does not divide the channels, another padding_mode; at the call, an output_size that no
            output_padding below stride gives.
        RuntimeError: at the call, an input of other channels or rank, or nothing left of the output.
    """

    ndim = 1


@layer
class ConvTranspose2d(_ConvTranspose):
    """:class:`ConvTranspose1d` in two dimensions: input (N, C, H, W) or (C, H, W), ``weight`` (C, O / groups, K_h, K_w)."""

    ndim = 2


@layer
class ConvTranspose3d(_ConvTranspose):
    """:class:`ConvTranspose1d` in three dimensions: input (N, C, D, H, W) or (C, D, H, W), ``weight`` (C, O / groups, K_d, K_h, K_w)."""

    ndim = 3


_FUNCTIONS = {
    (False, 1): conv1d,
    (False, 2): conv2d,
    (False, 3): conv3d,
    (True, 1): conv_transpose1d,
    (True, 2): conv_transpose2d,
    (True, 3): conv_transpose3d,
}
