"""Normalisation of each channel over the batch and space, or over space alone, with running statistics."""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from ..core import checks, dtypes
from ..core.function import function
from ..core.spec import Layer, buffer, config, layer, param
from ..core.spread import Shards, find_shards, parse_group
from ..kernels.normalization import Layout, normalized, normalized_by
from .normalization import affine, check_affine, ones_and_zeros, shared_moments

Array = jax.Array


def _per_channel(x: Array) -> tuple[int, ...]:
    """The shape in which a vector of one value per channel broadcasts with ``x``."""
    return (1, -1) + (1,) * (x.ndim - 2)


@function
def _by_input(
    who: str, input: Array, weight: Array | None, bias: Array | None, eps: float, axes: tuple[int, ...], shards: Shards | None = None
) -> tuple[Array, Array, Array]:
    """``input`` normalised by its own statistics over ``axes``; their mean over the batch, the variance unbiased.

    With ``shards``, the statistics are those of all of them; of several parts in one input, those of the first are returned.
    """
    check_affine(who, input, input.shape[1:2], weight=weight, bias=bias)
    parts = 1 if shards is None else shards.parts
    if input.shape[0] % parts:
        checks.fail(who, "groups need a batch that their number of shards divides", RuntimeError, shards=parts, input=input)
    count: Any = math.prod(input.shape[a] for a in axes) // parts
    values = count if shards is None else count * shards.least
    checks.require(values != 1, who, "statistics need more than one value per channel", ValueError, **{"input.shape": input.shape})
    x = input.astype(dtypes.accumulator(input.dtype))
    if shards is None:
        output, center, variance = normalized(Layout(1, 2, 2, eps, across=axes[:1] == (0,)), x, weight, bias)
        output = output.astype(input.dtype)
    else:
        split = x.reshape(parts, x.shape[0] // parts, *x.shape[1:])
        center, variance, deviation = shared_moments(split, tuple(a + 1 for a in axes), shards)
        scaled = (deviation * lax.rsqrt(variance + eps)).reshape(x.shape)
        output = affine(scaled, _per_channel(input), weight, bias, input.dtype)
        center, variance, count = center[0].reshape(-1), variance[0].reshape(-1), count * shards.count
    center, variance = (v.reshape(-1, input.shape[1]).mean(0) for v in (center, variance))
    unbiased = count / (max(count - 1, 1) if isinstance(count, int) else jnp.maximum(count - 1, 1).astype(variance.dtype))
    return output, center, variance * unbiased


def _by_running(
    who: str, input: Array, center: Array | None, variance: Array | None, weight: Array | None, bias: Array | None, eps: float
) -> Array:
    """``input`` normalised by given statistics."""
    if center is None or variance is None:
        checks.fail(who, "running_mean and running_var must be given when the input's statistics are not used", RuntimeError)
    check_affine(who, input, input.shape[1:2], running_mean=center, running_var=variance, weight=weight, bias=bias)
    x = input.astype(dtypes.accumulator(input.dtype))
    return normalized_by(Layout(1, 2, 2, eps, across=True), x, center, variance, weight, bias).astype(input.dtype)


def _check_eps(who: str, eps: float, training: bool) -> None:
    checks.require(eps > 0 or (eps == 0 and not training), who, "eps must be positive in training and never negative", eps=eps)


@function
def batch_norm(
    input: Array,
    running_mean: Array | None,
    running_var: Array | None,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Array:
    """``y = (x - mean) / sqrt(var + eps) * weight + bias`` for each channel.

    Mean and biased variance are the input's, over batch and space, in training, and the running ones else.

    Shape: input (N, C, *), all others (C,), output as input.

    Args:
        running_mean, running_var: the statistics used outside training.
        weight, bias: in the dtype of the input, or float32 for an input of a half type; so are the statistics.
        training: use the input's statistics.
        momentum: accepted and unused, see below.
        eps: added to the variance.

    Raises:
        RuntimeError: shapes or dtypes do not fit, or running statistics are missing outside training.
        ValueError: one value per channel in training, or an ``eps`` that is negative, or zero in training.

    Differs from torch: arrays are immutable, so training does not update the running statistics. The layers do.
    """
    if not input.size:
        return input
    _check("batch_norm", input, running_mean=running_mean, running_var=running_var)
    _check_eps("batch_norm", eps, training)
    if training:
        return _by_input("batch_norm", input, weight, bias, eps, (0, *range(2, input.ndim)))[0]
    return _by_running("batch_norm", input, running_mean, running_var, weight, bias, eps)


@function
def instance_norm(
    input: Array,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Array:
    """``y = (x - mean) / sqrt(var + eps) * weight + bias`` for each channel of each sample.

    Mean and biased variance are the input's, over space, or the running ones.

    Shape: input (N, C, *), all others (C,), output as input.

    Args:
        running_mean, running_var: the statistics used where ``use_input_stats`` is False.
        weight, bias: in the dtype of the input, or float32 for an input of a half type; so are the statistics.
        use_input_stats: use the input's statistics.
        momentum: accepted and unused, see below.
        eps: added to the variance.

    Raises:
        RuntimeError: shapes or dtypes do not fit, or running statistics are missing where they are used.
        ValueError: one value per channel, with ``use_input_stats``.

    Differs from torch: arrays are immutable, so the running statistics are not updated. The layers do.
    """
    _check("instance_norm", input, running_mean=running_mean, running_var=running_var)
    if use_input_stats:
        return _by_input("instance_norm", input, weight, bias, eps, tuple(range(2, input.ndim)))[0]
    return _by_running("instance_norm", input, running_mean, running_var, weight, bias, eps)


def _check(who: str, input: Array, **running: Array | None) -> None:
    checks.require(input.ndim >= 2, who, "input must have at least two dimensions", RuntimeError, input=input)
    check_affine(who, input, input.shape[1:2], **running)


@function
def _moved(old: Array, new: Array, momentum: Array | float) -> Array:
    return ((1 - momentum) * old + momentum * new).astype(old.dtype)


@layer
class _ChannelNorm(Layer):
    """What batch, synchronised and instance normalisation share."""

    ndim: ClassVar[int]
    num_features: int
    eps: float = 1e-5
    momentum: float | None = 0.1
    affine: bool = True
    track_running_stats: bool = True
    weight: Array | None = param()
    bias: Array | None = param()
    running_mean: Array | None = buffer()
    running_var: Array | None = buffer()
    num_batches_tracked: Array | None = buffer()

    def validate(self) -> None:
        checks.integer(self, "num_features", self.num_features, 0)

    def setup(self, key: Array) -> dict[str, Array | None]:
        me: Any = self  # dtype and use_bias are fields of the subclasses, which order them differently
        shape = (self.num_features,)
        dtype = dtypes.parameter(self, me.dtype)
        return ones_and_zeros(self, shape, dtype, self.affine, me.use_bias) | {
            "running_mean": jnp.zeros(shape, dtype) if self.track_running_stats else None,
            "running_var": jnp.ones(shape, dtype) if self.track_running_stats else None,
            "num_batches_tracked": jnp.zeros((), dtypes.index()) if self.track_running_stats else None,
        }

    def extra_repr(self) -> str:
        use_bias = self.affine and self.use_bias  # type: ignore[attr-defined]
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={use_bias}, track_running_stats={self.track_running_stats}"
        )

    def _track(self, s: Any, center: Array, variance: Array, momentum: Array | float) -> None:
        """Move the running statistics. They are no function of the input: no gradient flows through them."""
        for name, new in (("running_mean", center), ("running_var", variance)):
            old = getattr(s, name)
            if old is not None:
                setattr(s, name, _moved(old, lax.stop_gradient(new), momentum))


@layer
class AnyBatchNorm(_ChannelNorm):
    """What batch and synchronised batch normalisation share."""

    def _check_input(self, input: Array) -> None:
        raise NotImplementedError

    def _shards(self) -> Shards | None:
        """The shards of the batch whose statistics are taken together; None where there is but one."""
        return None

    def compute(self, s: Any, input: Array) -> Array:
        self._check_input(input)
        momentum = self._count(s) if s.training and self.track_running_stats else 0.0
        if not s.training and (s.running_mean is not None or s.running_var is not None):
            return batch_norm(input, s.running_mean, s.running_var, s.weight, s.bias, False, 0.0, self.eps)
        who, axes = type(self).__name__, (0, *range(2, input.ndim))
        _check_eps(who, self.eps, training=True)
        shards = self._shards() if s.training else None
        output, center, variance = _by_input(who, input, s.weight, s.bias, self.eps, axes, shards)
        if s.training and self.track_running_stats and input.size:
            self._track(s, center, variance, momentum)
        return output

    def _count(self, s: Any) -> Array | float:
        """Count one more batch; the share that it has in the running statistics."""
        if s.num_batches_tracked is not None:
            s.num_batches_tracked = s.num_batches_tracked + 1
            if self.momentum is None:
                return 1 / s.num_batches_tracked
        return 0.0 if self.momentum is None else self.momentum


@layer
class _BatchNormNd(AnyBatchNorm):
    device: Any = None
    dtype: Any = None
    use_bias: bool = config(default=True, alias="bias")

    def _check_input(self, input: Array) -> None:
        checks.rank(self, input, (2, 3) if self.ndim == 1 else (self.ndim + 2,), ValueError)


class BatchNorm1d(_BatchNormNd):
    """Normalises each channel over the batch and space: ``y = (x - mean) / sqrt(var + eps) * weight + bias``.

    In training, mean and biased variance are the input's, and running ones follow them (the variance unbiased):
    ``running = (1 - momentum) * running + momentum * new``. In evaluation the running ones are used.

    Shape: input (N, C) or (N, C, L), output the same.

    Args:
        num_features: number of channels, C.
        eps: added to the variance.
        momentum: the share of a new batch in the running statistics; None makes them the plain mean of all batches.
        affine: whether to learn a weight and a bias.
        track_running_stats: whether to keep running statistics; without, the input's are used in evaluation too.
        device: where the state lives; ``"meta"`` makes abstract arrays.
        dtype: of the parameters and running statistics; float32 when None.
        bias: whether to learn a bias as well as a weight.

    State: ``weight``, ones, and ``bias``, zeros; buffers ``running_mean``, zeros, and ``running_var``, ones, all (C,);
        ``num_batches_tracked`` (), an integer.

    Raises:
        ValueError: the input has another number of dimensions, or one value per channel in training.
        RuntimeError: the input does not have ``num_features`` channels.

    Reference: Ioffe and Szegedy, Batch Normalization, 2015.
    """

    ndim = 1


class BatchNorm2d(_BatchNormNd):
    """:class:`BatchNorm1d` for images.

    Shape: input (N, C, H, W), output the same.
    """

    ndim = 2


class BatchNorm3d(_BatchNormNd):
    """:class:`BatchNorm1d` for volumes.

    Shape: input (N, C, D, H, W), output the same.
    """

    ndim = 3


@layer
class SyncBatchNorm(AnyBatchNorm):
    """:class:`BatchNorm1d` of any rank over a batch that is spread over devices.

    In training the statistics are those of all shards together: the mean of their means, then the mean of the squared
    deviations from it. So are the gradients, and the running statistics, which are equal on all shards of a group.

    Under ``pmap``, ``vmap`` and ``shard_map`` a shard is what each device is given, along mapped axes. In a program that sees
    the whole batch, as under plain ``jit``, the batch has its statistics already; there a group is one of parts of the batch,
    one after the other, along axes of the mesh of ``jax.set_mesh``, and the running statistics are those of the first part.

    Shape: input (N, C, *), output the same.

    Args:
        process_group: the name of the axis that the batch is spread over, a tuple of names, or a pair of either and groups of
            indices along it: ``("batch", [[0, 1], [2, 3]])`` takes the statistics of each two shards together. None: the
            axes that ``jnn.parallel`` spreads the batch over; elsewhere the layer is a batch normalisation.

    Raises:
        ValueError: the groups do not hold each index once; the input has fewer than two dimensions, or no channels, or one
            value per channel over all shards in training.
        RuntimeError: in training, there is no axis of that name, its size is not that of the groups, or the groups' parts
            do not divide the batch.

    Differs from torch: the group is an axis name; a mean far from 0 costs no precision.
    """

    process_group: Any = None
    device: Any = None
    dtype: Any = None
    use_bias: bool = config(default=True, alias="bias")

    def validate(self) -> None:
        super().validate()
        groups = parse_group(self, self.process_group)[1]
        if groups is not None:
            self._set(process_group=(self.process_group[0], groups))

    def _check_input(self, input: Array) -> None:
        checks.require(input.ndim >= 2, self, "input must have at least two dimensions", ValueError, input=input)
        checks.require(input.shape[1] > 0, self, "input must have channels", ValueError, input=input)

    def _shards(self) -> Shards:
        return find_shards(self, self.process_group)


@layer
class _InstanceNormNd(_ChannelNorm):
    affine: bool = False
    track_running_stats: bool = False
    device: Any = None
    dtype: Any = None
    use_bias: bool = config(default=True, alias="bias")

    def compute(self, s: Any, input: Array) -> Array:
        checks.rank(self, input, (self.ndim + 1, self.ndim + 2), ValueError)
        batched = input.ndim == self.ndim + 2
        self._check_channels(input.shape[batched])
        x = input if batched else input[None]
        output = self._normalize(s, x)
        return output if batched else output[0]

    def _check_channels(self, channels: int) -> None:
        rule = "the input must have num_features channels"
        if channels != self.num_features:
            if self.affine:
                checks.fail(self, rule, ValueError, channels=channels, num_features=self.num_features)
            warnings.warn(f"{type(self).__name__}: {rule}; num_features is not used without affine", UserWarning, stacklevel=4)

    def _normalize(self, s: Any, x: Array) -> Array:
        if not s.training and self.track_running_stats:
            return instance_norm(x, s.running_mean, s.running_var, s.weight, s.bias, False, 0.0, self.eps)
        who, axes = type(self).__name__, tuple(range(2, x.ndim))
        output, center, variance = _by_input(who, x, s.weight, s.bias, self.eps, axes)
        if x.size:
            self._track(s, center, variance, 0.0 if self.momentum is None else self.momentum)
        return output


class InstanceNorm1d(_InstanceNormNd):
    """Normalises each channel of each sample over space: ``y = (x - mean) / sqrt(var + eps) * weight + bias``.

    With ``track_running_stats``, running statistics follow the batch's mean of the mean and of the unbiased variance in
    training, and are used in evaluation.

    Shape: input (N, C, L) or (C, L), output the same.

    Args:
        num_features: number of channels, C; with ``affine`` or running statistics, those of the input.
        eps: added to the variance.
        momentum: the share of a new batch in the running statistics; None means 0, as in torch.
        affine: whether to learn a weight and a bias.
        track_running_stats: whether to keep running statistics.
        device, dtype, bias: as in :class:`BatchNorm1d`.

    State: as :class:`BatchNorm1d`, where ``affine`` and ``track_running_stats`` ask for it.

    Raises:
        ValueError: the input has another number of dimensions, one value per channel and sample, or with ``affine``
            another number of channels.

    Reference: Ulyanov, Vedaldi and Lempitsky, Instance Normalization, 2016.
    """

    ndim = 1


class InstanceNorm2d(_InstanceNormNd):
    """:class:`InstanceNorm1d` for images.

    Shape: input (N, C, H, W) or (C, H, W), output the same.
    """

    ndim = 2


class InstanceNorm3d(_InstanceNormNd):
    """:class:`InstanceNorm1d` for volumes.

    Shape: input (N, C, D, H, W) or (C, D, H, W), output the same.
    """

    ndim = 3
