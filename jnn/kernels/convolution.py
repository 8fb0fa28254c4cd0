"""How convolutions are lowered. Shapes are torch's: x (N, C, *S), w (O, C / groups, *K), transposed w (C, O / groups, *K), bias (O,).

A convolution, its gradient by the input, which is a transposed convolution, and its gradient by the weight are three bilinear
functions, each of which has the others for gradients. Each is written here once, in the form that is fast for its shapes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import dtypes
from . import dense, grouped, linear, patches
from .foreign import foreign
from .multilinear import Like, affine, multilinear
from .platform import by_library, exact_products, native
from .taps import Geometry, Ints, Pads, count, flipped, pad, swapped

Array = jax.Array
# Of a geometry, the spatial sizes of the result, and two arrays.
_Sized = Callable[..., Array]

# XLA:CPU expands a grouped convolution into a dense or a scalar one; up to these numbers, writing it out is faster: of terms of an
# output, of those in steps of 1, where neighbours are read together, and of groups.
_MOST_TERMS = 64
_MOST_NEAR_TERMS = 100
_MOST_GROUPS = 32
# Groups of fewer channels than these are joined.
_CHANNELS = 16
# A gradient by the input is that of its patches from so many outputs for each input channel on, or where subpixels, which zeros fill
# up, are so many times as large as the kernel.
_OUTPUTS_A_CHANNEL = 6
_MOST_ZEROS = 1.7
# Of so many places at most the library's gradient of a piece is faster: 0.47 to 0.85 of the time of 2 x 2, 1.15 of 4 x 4, 3 of 16 x 16.
_FEW_PLACES = 8
# Of one channel, and fewer along a row than vectors have lanes, pieces are the rows of a matmul: 0.5 to 0.8 of the library's time, of
# more channels or places 1.1 to 2.
_NARROW = 8
# Of sequences with steps first so many weights of a tap, or so many steps of all sequences, at most are multiplied as they lie: 0.4 to 0.9
# of the time; of more, 1 to 1.3 with gradients.
_FEW_WEIGHTS, _FEW_STEPS = 1 << 14, 1 << 9
# What the library takes where it can, one of the forms; it chooses where there is none.
LIBRARY_FORMS = ("", "patches", "slabs", "winograd", "outputs", "columns", "channels", "places")
LIBRARY_FORM = ""


def conv(x: Array, w: Array, bias: Array | None = None, *, stride: Ints, padding: Pads, dilation: Ints, groups: int = 1) -> Array:
    """The cross-correlation of ``x``, padded by zeros, with ``w``; and the bias of each output."""
    if native() or not x.size or not w.size:
        return _plus(_native(x, w, stride, padding, dilation, groups), bias)
    geometry = Geometry(tuple(stride), tuple((low, high) for low, high in padding), tuple(dilation), groups)
    return _in_accumulator(functools.partial(_conv if bias is None else _conv_and_bias, geometry), x, w, bias)


def conv_steps_first(x: Array, w: Array, bias: Array, *, stride: Ints, padding: Pads, dilation: Ints, groups: int) -> Array:
    """:func:`conv` along one axis in steps of one, whose arrays were transposed from (T, N, C) and (K, C, O), as its result will be to.

    Each step is multiplied by the weights of all taps, and the products are added up where they belong: no array has to be transposed.
    """
    (n, channels, steps), (outputs, _, taps), (low, high) = x.shape, w.shape, padding[0]
    large = channels * outputs > _FEW_WEIGHTS and count((steps, n)) > _FEW_STEPS
    if not by_library() or large or not x.size or not w.size:
        return conv(x, w, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)

    def sum_of_steps(x: Array, w: Array, bias: Array) -> Array:
        weights = jnp.transpose(w, (2, 0, 1)).reshape(taps * outputs, channels)
        products = linear.linear(jnp.transpose(x, (2, 0, 1)), weights).reshape(steps, n, taps, outputs)
        pads = [((low - k, high - (taps - 1 - k), 0), (0, 0, 0), (0, 0, 0)) for k in range(taps)]
        parts = [lax.pad(products[:, :, k], jnp.zeros((), x.dtype), config) for k, config in enumerate(pads)]
        return _plus(jnp.transpose(functools.reduce(lax.add, parts), (1, 2, 0)), bias)

    return _in_accumulator(sum_of_steps, x, w, bias)


def conv_transpose(
    x: Array,
    w: Array,
    bias: Array | None = None,
    *,
    stride: Ints,
    padding: Ints,
    output_padding: Ints,
    dilation: Ints,
    groups: int = 1,
) -> Array:
    """The transpose of ``conv`` in its input: every element of ``x`` adds its multiple of ``w`` to an output that begins with the bias."""
    kernel = w.shape[2:]
    reach = [d * (k - 1) for d, k in zip(dilation, kernel)]
    if native() or not x.size or not w.size:
        pads = [(r - p, r - p + o) for r, p, o in zip(reach, padding, output_padding)]
        return _plus(_native(x, flipped(swapped(w, groups)), (1,) * len(kernel), pads, dilation, groups, stride), bias)
    sizes = tuple((n - 1) * s - 2 * p + r + 1 + o for n, s, p, r, o in zip(x.shape[2:], stride, padding, reach, output_padding))
    geometry = Geometry(tuple(stride), tuple((p, p) for p in padding), tuple(dilation), groups)
    transposed = _conv_transpose if bias is None else _conv_transpose_and_bias
    return _in_accumulator(functools.partial(transposed, (geometry, sizes)), x, w, bias)


def _in_accumulator(fn: Callable[..., Array], *arrays: Array | None) -> Array:
    given = [x for x in arrays if x is not None]
    own = given[0].dtype
    dtype = dtypes.accumulator(own) if jnp.issubdtype(own, jnp.inexact) else own
    return fn(*(x.astype(dtype) for x in given)).astype(own)


def _spread(bias: Array, shape: Sequence[int]) -> Array:
    return jnp.broadcast_to(bias.reshape(bias.shape[0], *(1,) * (len(shape) - 2)), shape)


def _plus(y: Array, bias: Array | None = None) -> Array:
    return y if bias is None else y + _spread(bias, y.shape)


def _native(x: Array, w: Array, stride: Ints, padding: Pads, dilation: Ints, groups: int, input_dilation: Ints | None = None) -> Array:
    return lax.conv_general_dilated(x, w, stride, padding, lhs_dilation=input_dilation, rhs_dilation=dilation, feature_group_count=groups)


def _in_terms(geometry: Geometry, per_group: int, kernel: Ints, most: int) -> bool:
    """Whether groups have so few channels that each term of an output is written out."""
    return geometry.groups > 1 and per_group * math.prod(kernel) <= most


def _forward(geometry: Geometry, x: Array, w: Array) -> Array:
    kernel, groups = w.shape[2:], geometry.groups
    near = max(geometry.stride) == 1
    if (near or w.shape[1] == 1) and _in_terms(geometry, w.shape[1], kernel, _MOST_NEAR_TERMS if near else _MOST_TERMS):
        return grouped.conv(geometry, x, w)
    share = _share(groups, w.shape[1])
    if groups == 1 or groups // share > _MOST_GROUPS:
        return dense.conv(geometry, x, w)
    w = _joined(w, groups, share)
    one, groups = geometry._replace(groups=1), groups // share
    parts = [dense.conv(one, *pair) for pair in zip(jnp.split(x, groups, 1), jnp.split(w, groups))]
    return jnp.concatenate(parts, 1)


def _share(groups: int, per_group: int) -> int:
    """How many groups of few channels make one convolution, in which most weights are zeros: 1.4 to 4 times as fast."""
    return next(n for n in range(min(groups, max(1, _CHANNELS // per_group)), 0, -1) if groups % n == 0)


def _joined(w: Array, groups: int, share: int) -> Array:
    """The weight (O, C / groups, *K) with zeros for ``share`` groups in one: (O, share * C / groups, *K)."""
    if share == 1:
        return w
    blocks = w.reshape(groups // share, share, w.shape[0] // groups, 1, *w.shape[1:])
    same = np.eye(share, dtype=bool).reshape(1, share, 1, share, *[1] * (w.ndim - 1))
    return jnp.where(same, blocks, 0).reshape(w.shape[0], -1, *w.shape[2:])


def _by_input(geometry: Geometry, g: Array, w: Array, sizes: Ints) -> Array:
    """The gradient by an input with spatial ``sizes``, for the cotangent ``g`` of the output."""
    kernel, (stride, padding, dilation, groups) = w.shape[2:], geometry
    if _by_columns(geometry, g, w):
        return patches.by_input(geometry, g, w, sizes)
    if max(stride) > 1 and max(dilation) == 1:
        return _subpixel(geometry, g, w, sizes)
    # Zeros between the elements undo the stride, where there is one.
    g = pad(g, [(0, 0)] * len(kernel), stride)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel)]
    lows = [r - low for r, (low, _) in zip(reach, padding)]
    pads = tuple((low, size + r - n - low) for low, size, r, n in zip(lows, sizes, reach, g.shape[2:]))
    return _forward(Geometry((1,) * len(kernel), pads, dilation, groups), g, flipped(swapped(w, groups)))


def _by_columns(geometry: Geometry, g: Array, w: Array) -> bool:
    """Whether the gradient by the input is that of its patches, added up: where those are few against the products they take."""
    stride, (outputs, channels, *kernel) = geometry.stride, w.shape
    if geometry.groups > 1:
        return False
    # How much more subpixels multiply: zeros fill the kernel up to a multiple of the stride.
    more = math.prod(-(-k // s) * s for k, s in zip(kernel, stride)) / math.prod(kernel)
    far = max(stride) > 1 < max(geometry.dilation)
    if more == 1 < max(stride) and not far:
        return False
    many = outputs >= _OUTPUTS_A_CHANNEL * channels and patches.elements(g.shape[0], g.shape[2:], w.shape) <= dense.MOST_PATCHES
    by_patches = dense.by_patches(geometry, g.shape[0], g.shape[2:], w.shape)
    return many or (by_patches and (more >= _MOST_ZEROS or max(stride) == 1 or far))


def _subpixel(geometry: Geometry, g: Array, w: Array, sizes: Ints) -> Array:
    """``_by_input`` as a convolution that gives each of the ``prod(stride)`` interleaved outputs its channel.

    Nothing is multiplied by inserted zeros. With kernel offset k = q * stride + r, output t * stride + r is the sum over q of
    g[t - q] w[q * stride + r].
    """
    stride, groups = geometry.stride, geometry.groups
    w = swapped(w, groups)
    n, (channels, per_group, *kernel) = len(stride), w.shape
    quotients = [-(-k // s) for k, s in zip(kernel, stride)]
    w = pad(w, [(0, q * s - k) for q, s, k in zip(quotients, stride, kernel)])
    w = w.reshape(channels, per_group, *(m for pair in zip(quotients, stride) for m in pair))
    w = jnp.transpose(w, (0, *range(3, 2 * n + 2, 2), 1, *range(2, 2 * n + 2, 2))).reshape(-1, per_group, *quotients)
    full = tuple((q - 1, q - 1) for q in quotients)
    y = _forward(Geometry((1,) * n, full, (1,) * n, groups), g, flipped(w))
    y = y.reshape(g.shape[0], channels, *stride, *y.shape[2:])
    y = jnp.transpose(y, (0, 1, *(axis for d in range(n) for axis in (2 + n + d, 2 + d))))
    y = y.reshape(g.shape[0], channels, *(y.shape[2 + 2 * d] * s for d, s in enumerate(stride)))
    return pad(y, [(-low, low + size - whole) for (low, _), size, whole in zip(geometry.padding, sizes, y.shape[2:])])


def _by_weight(geometry: Geometry, g: Array, x: Array, kernel: Ints) -> Array:
    """The gradient by a weight with spatial sizes ``kernel``, for the cotangent ``g`` of the output."""
    groups, per_group = geometry.groups, x.shape[1] // geometry.groups
    if _in_terms(geometry, per_group, kernel, _MOST_TERMS):
        return grouped.by_weight(geometry, g, x, kernel)
    share = _share(groups, per_group)
    if groups == 1 or groups // share > _MOST_GROUPS:
        return dense.by_weight(geometry, g, x, kernel)
    one, groups = geometry._replace(groups=1), groups // share
    parts = [dense.by_weight(one, *pair, kernel) for pair in zip(jnp.split(g, groups, 1), jnp.split(x, groups, 1))]
    blocks = jnp.stack(parts).reshape(groups, share, -1, share, per_group, *kernel)
    return jnp.stack([blocks[:, i, :, i] for i in range(share)], 1).reshape(g.shape[1], per_group, *kernel)


def _attributes(static: tuple[Geometry, Ints]) -> dict[str, Any]:
    stride, padding, dilation, groups = static[0]
    spans = {"stride": stride, "padding": [low for low, _ in padding], "dilation": dilation}
    numbers = {name: np.array(values, np.int64) for name, values in spans.items()}
    return numbers | {"groups": np.int64(groups), "exact": exact_products(), "form": LIBRARY_FORM}


def _by_library(target: str, definition: _Sized) -> _Sized:
    """``definition(geometry, sizes, a, b)``, the sizes being those of the result, as a call of the library; with a bias, if given."""
    run = foreign(target, lambda static, a, b, *bias: (_plus(definition(*static, a, b), *bias),), _attributes)
    return lambda geometry, sizes, *arrays: run((geometry, tuple(sizes)), *arrays)[0]


_library_forward = _by_library("jnn_conv", lambda geometry, _, x, w: _forward(geometry, x, w))
_library_by_input = _by_library("jnn_conv_by_input", lambda geometry, sizes, g, w: _by_input(geometry, g, w, sizes))
_library_by_weight = _by_library("jnn_conv_by_weight", lambda geometry, kernel, g, x: _by_weight(geometry, g, x, kernel))


def _is_linear(geometry: Geometry, sizes: Sequence[int], w: Array | Like) -> bool:
    """Whether the kernel covers all of an input with spatial ``sizes``: each output is a number, and a convolution a matmul."""
    kernel, none = tuple(w.shape[2:]), ((0, 0),) * len(sizes)
    near = max(geometry.dilation) == 1 or max(kernel) == 1
    return tuple(sizes) == kernel and geometry.padding == none and near and geometry.groups == 1 and not LIBRARY_FORM


def _as_linear(product: Callable[..., Array], a: Array, b: Array, shape: Sequence[int], *bias: Array) -> Array:
    """``product``, of the kernel ``linear``, of the arrays as matrices."""
    return product(a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1), *bias).reshape(shape)


def _is_scale(geometry: Geometry, w: Array | Like) -> bool:
    """Whether each output is a channel times a number, which XLA joins with what is around it: alone 0.4 to 0.9 of the library's time."""
    each = w.shape[1] == 1 and w.shape[0] == geometry.groups and math.prod(w.shape[2:]) == max(geometry.stride) == 1
    return each and all(pads == (0, 0) for pads in geometry.padding) and not LIBRARY_FORM


def _are_narrow(geometry: Geometry, sizes: Sequence[int], w: Array | Like) -> bool:
    """Whether outputs with spatial ``sizes``, none left open, read pieces of one channel that do not overlap, with nothing around them,
    many places each and few of them along a row."""
    kernel = tuple(w.shape[2:])
    pieces = kernel == geometry.stride and math.prod(kernel) > _FEW_PLACES and geometry.padding == ((0, 0),) * len(sizes)
    one = w.shape[1] == geometry.groups == max(geometry.dilation) == 1 and not LIBRARY_FORM
    return pieces and one and all(isinstance(n, int) for n in sizes) and sizes[-1] < _NARROW


def _pieces(x: Array, kernel: Ints, sizes: Sequence[int]) -> Array:
    """The pieces of images of one channel, (N * places, elements)."""
    n, axes = len(kernel), [(s, k) for s, k in zip(sizes, kernel, strict=True)]
    x = x[:, 0, *(slice(s * k) for s, k in axes)].reshape(x.shape[0], *(size for pair in axes for size in pair))
    x = jnp.transpose(x, (0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2)))
    return x.reshape(x.shape[0] * math.prod(sizes), math.prod(kernel))


def _value(geometry: Geometry, x: Array, w: Array, *bias: Array) -> Array:
    kernel = w.shape[2:]
    sizes = geometry.sizes(x.shape[2:], kernel)
    if _is_linear(geometry, x.shape[2:], w):
        return _as_linear(linear.linear, x, w, (x.shape[0], w.shape[0], *sizes), *bias)
    if _is_scale(geometry, w):
        return _plus(x * _spread(w, x.shape), *bias)
    if _are_narrow(geometry, sizes, w):
        y = linear.linear(_pieces(x, kernel, sizes), w.reshape(w.shape[0], math.prod(w.shape[1:])), *bias)
        return jnp.swapaxes(y.reshape(x.shape[0], math.prod(sizes), w.shape[0]), 1, 2).reshape(x.shape[0], w.shape[0], *sizes)
    return _library_forward(geometry, sizes, x, w, *bias)


def _slope_by_input(geometry: Geometry, g: Array, w: Array, sizes: Ints, *bias: Array) -> Array:
    if _is_linear(geometry, sizes, w):
        return _plus(_as_linear(linear.by_input, g, w, (g.shape[0], w.shape[1], *sizes)), *bias)
    if _is_scale(geometry, w):
        return _plus(g * _spread(w, g.shape), *bias)
    return _library_by_input(geometry, sizes, g, w, *bias)


def _slope_by_weight(geometry: Geometry, g: Array, x: Array, w: Array | Like) -> Array:
    if _is_linear(geometry, x.shape[2:], w):
        return _as_linear(linear.by_weight, g, x, w.shape)
    if _are_narrow(geometry, g.shape[2:], w):
        slopes = jnp.moveaxis(g, 1, -1).reshape(g.shape[0] * math.prod(g.shape[2:]), g.shape[1])
        return linear.by_weight(slopes, _pieces(x, w.shape[2:], g.shape[2:])).reshape(w.shape)
    return _library_by_weight(geometry, w.shape[2:], g, x)


_conv = multilinear(_value, lambda geometry, g, w, x: _slope_by_input(geometry, g, w, x.shape[2:]), _slope_by_weight)
_conv_transpose = multilinear(
    lambda static, x, w: _slope_by_input(static[0], x, w, static[1]),
    lambda static, g, w, x: _value(_covering(static[0], static[1], x, w), g, w),
    lambda static, g, x, w: _slope_by_weight(_covering(static[0], static[1], x, w), x, g, w),
)
_conv_and_bias = affine(_value, _conv, _spread)
_conv_transpose_and_bias = affine(lambda static, x, w, bias: _slope_by_input(static[0], x, w, static[1], bias), _conv_transpose, _spread)


def _covering(geometry: Geometry, sizes: Sequence[int], x: Array | Like, w: Array | Like) -> Geometry:
    """``geometry`` with what padding makes an input of ``sizes`` give an output as large as ``x``, to the element."""
    ends = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(x.shape[2:], geometry.stride, geometry.dilation, w.shape[2:])]
    return geometry._replace(padding=tuple((low, end - size - low) for (low, _), end, size in zip(geometry.padding, ends, sizes)))
