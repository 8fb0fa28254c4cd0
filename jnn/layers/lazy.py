"""Layers that learn one of their sizes from their input."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax

from ..core import checks, tree
from ..core.spec import Layer, layer
from ..core.view import Start
from . import batchnorm, conv, linear

Array = jax.Array


class Lazy(Layer):
    """Base of the lazy layers, ahead of the layer that each becomes.

    ``init(key, input)`` takes an example of the input, or a ``jax.ShapeDtypeStruct``. So it does on a layer of any kind
    with lazy ones inside. ``apply`` is that of the layer it becomes.
    """

    lazy = True
    missing: ClassVar[str]

    def infer(self, input: Array) -> int:
        """The missing size for an input."""
        raise NotImplementedError

    def held(self, s: Any) -> int:
        """The missing size of state that there is."""
        raise NotImplementedError

    def resolved(self, input: Array, *args: Any, **kw: Any) -> Layer:
        plain: Any = next(c for c in type(self).__mro__ if not issubclass(c, Lazy))
        made = object.__new__(plain)
        made._set(**{f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}, **{self.missing: self.infer(input)})
        made.validate()
        return made

    def _init(self, start: Start, path: str) -> tuple[tree.Tree, tree.Tree]:
        known = start.known.get(path)
        return super()._init(start, path) if known is None else known._init(start, path)


@layer
class LazyLinear(Lazy, linear.Linear):
    """A :class:`Linear` whose ``in_features`` is the size of the last dimension of its first input.

    Args:
        out_features, bias, device, dtype: as of :class:`Linear`.
    """

    in_features: ClassVar[int] = 0
    missing = "in_features"

    def infer(self, input: Array) -> int:
        checks.require(input.ndim >= 1, self, "input must have at least one dimension", RuntimeError, shape=input.shape)
        return input.shape[-1]

    def held(self, s: Any) -> int:
        return s.weight.shape[1]


@layer
class _LazyConv(Lazy):
    in_channels: ClassVar[int] = 0
    missing = "in_channels"

    def infer(self, input: Array) -> int:
        me: Any = self
        checks.rank(self, input, (me.ndim + 1, me.ndim + 2))
        return input.shape[-me.ndim - 1]

    def held(self, s: Any) -> int:
        me: Any = self
        return s.weight.shape[0] if me.transposed else s.weight.shape[1] * me.groups


@layer
class LazyConv1d(_LazyConv, conv.Conv1d):
    """A :class:`Conv1d` whose ``in_channels`` is the number of channels of its first input.

    Args:
        out_channels, kernel_size, ...: as of :class:`Conv1d`.
    """


@layer
class LazyConv2d(_LazyConv, conv.Conv2d):
    """A :class:`Conv2d` whose ``in_channels`` is the number of channels of its first input."""


@layer
class LazyConv3d(_LazyConv, conv.Conv3d):
    """A :class:`Conv3d` whose ``in_channels`` is the number of channels of its first input."""


@layer
class LazyConvTranspose1d(_LazyConv, conv.ConvTranspose1d):
    """A :class:`ConvTranspose1d` whose ``in_channels`` is the number of channels of its first input.

    Args:
        out_channels, kernel_size, ...: as of :class:`ConvTranspose1d`.
    """


@layer
class LazyConvTranspose2d(_LazyConv, conv.ConvTranspose2d):
    """A :class:`ConvTranspose2d` whose ``in_channels`` is the number of channels of its first input."""


@layer
class LazyConvTranspose3d(_LazyConv, conv.ConvTranspose3d):
    """A :class:`ConvTranspose3d` whose ``in_channels`` is the number of channels of its first input."""


@layer
class _LazyNorm(Lazy):
    num_features: ClassVar[int] = 0
    missing = "num_features"

    def held(self, s: Any) -> int:
        known = (a.shape[0] for a in (s.weight, s.running_mean) if a is not None)
        return next(known, 0)


@layer
class _LazyBatchNorm(_LazyNorm):
    def infer(self, input: Array) -> int:
        me: Any = self
        me._check_input(input)
        return input.shape[1]


@layer
class LazyBatchNorm1d(_LazyBatchNorm, batchnorm.BatchNorm1d):
    """A :class:`BatchNorm1d` whose ``num_features`` is the number of channels of its first input.

    Args:
        eps, momentum, ...: as of :class:`BatchNorm1d`.
    """


@layer
class LazyBatchNorm2d(_LazyBatchNorm, batchnorm.BatchNorm2d):
    """A :class:`BatchNorm2d` whose ``num_features`` is the number of channels of its first input."""


@layer
class LazyBatchNorm3d(_LazyBatchNorm, batchnorm.BatchNorm3d):
    """A :class:`BatchNorm3d` whose ``num_features`` is the number of channels of its first input."""


@layer
class _LazyInstanceNorm(_LazyNorm):
    affine: bool = True
    track_running_stats: bool = True

    def infer(self, input: Array) -> int:
        me: Any = self
        checks.rank(self, input, (me.ndim + 1, me.ndim + 2), ValueError)
        return input.shape[-me.ndim - 1]


@layer
class LazyInstanceNorm1d(_LazyInstanceNorm, batchnorm.InstanceNorm1d):
    """An :class:`InstanceNorm1d` whose ``num_features`` is the number of channels of its first input.

    Args:
        eps, momentum, ...: as of :class:`InstanceNorm1d`.
        affine, track_running_stats: True unless given.

    Differs from torch: the first input may be without a batch.
    """


@layer
class LazyInstanceNorm2d(_LazyInstanceNorm, batchnorm.InstanceNorm2d):
    """An :class:`InstanceNorm2d` whose ``num_features`` is the number of channels of its first input."""


@layer
class LazyInstanceNorm3d(_LazyInstanceNorm, batchnorm.InstanceNorm3d):
    """An :class:`InstanceNorm3d` whose ``num_features`` is the number of channels of its first input."""
