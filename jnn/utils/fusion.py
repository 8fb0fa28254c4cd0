"""A batch normalisation in evaluation mode folded into the layer before it."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from ..core import checks
from ..module.module import Module
from ..module.parameter import Parameter

M = TypeVar("M", bound=Module)
ArrayLike = Any


def _fold(
    w: ArrayLike,
    b: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    eps: float,
    scale: ArrayLike,
    shift: ArrayLike,
    axis: int,
) -> tuple[Parameter, Parameter]:
    """Weight and bias of ``scale * (w x + b - mean) / sqrt(var + eps) + shift``, whose outputs are axis ``axis`` of ``w``."""
    trained = getattr(w, "requires_grad", False), getattr(b, "requires_grad", False)
    w, mean, var = (jnp.asarray(x) for x in (w, mean, var))
    dtype = w.dtype if b is None else b.dtype
    b = jnp.zeros_like(mean) if b is None else jnp.asarray(b)
    factor = jax.lax.rsqrt(var + eps)
    factor = factor if scale is None else factor * jnp.asarray(scale)
    shape = [1] * w.ndim
    shape[axis] = factor.size
    fused_w = w * factor.reshape(shape)
    fused_b = (b - mean) * factor + (0 if shift is None else jnp.asarray(shift))
    return Parameter(fused_w.astype(w.dtype), trained[0]), Parameter(fused_b.astype(dtype), trained[1])


def fuse_conv_bn_weights(
    conv_w: ArrayLike,
    conv_b: ArrayLike,
    bn_rm: ArrayLike,
    bn_rv: ArrayLike,
    bn_eps: float,
    bn_w: ArrayLike,
    bn_b: ArrayLike,
    transpose: bool = False,
) -> tuple[Parameter, Parameter]:
    """Weight and bias of the convolution that does what a convolution and a batch normalisation after it do.

    Args:
        conv_w, conv_b: of the convolution; the bias may be None.
        bn_rm, bn_rv: running mean and variance.
        bn_eps: what is added to the variance.
        bn_w, bn_b: scale and shift; each may be None.
        transpose: whether the convolution is a transposed one.
    """
    return _fold(conv_w, conv_b, bn_rm, bn_rv, bn_eps, bn_w, bn_b, 1 if transpose else 0)


def fuse_linear_bn_weights(
    linear_w: ArrayLike, linear_b: ArrayLike, bn_rm: ArrayLike, bn_rv: ArrayLike, bn_eps: float, bn_w: ArrayLike, bn_b: ArrayLike
) -> tuple[Parameter, Parameter]:
    """Weight and bias of the linear layer that does what one and a batch normalisation after it do.

    Arguments as of :func:`fuse_conv_bn_weights`.
    """
    return _fold(linear_w, linear_b, bn_rm, bn_rv, bn_eps, bn_w, bn_b, 0)


def _require_eval(who: str, layer: Module, bn: Any) -> None:
    checks.require(not layer.training and not bn.training, who, "both modules must be in evaluation mode", AssertionError)
    known = bn.running_mean is not None and bn.running_var is not None
    checks.require(known, who, "the batch normalisation must have running statistics", AssertionError)


def _fused(layer: M, bn: Any, **kwargs: Any) -> M:
    new: Any = copy.deepcopy(layer)
    fold = fuse_conv_bn_weights if kwargs else fuse_linear_bn_weights
    new.weight, new.bias = fold(new.weight, new.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias, **kwargs)
    new.use_bias = True
    return new


def fuse_conv_bn_eval(conv: M, bn: Module, transpose: bool = False) -> M:
    """A copy of a convolution that does what it and a batch normalisation after it do.

    Args:
        conv: the convolution.
        bn: the batch normalisation, with running statistics; both are in evaluation mode.
        transpose: whether the convolution is a transposed one.

    Raises:
        AssertionError: one of them is in training mode, or there are no running statistics.
    """
    _require_eval("fuse_conv_bn_eval", conv, bn)
    return _fused(conv, bn, transpose=transpose)


def fuse_linear_bn_eval(linear: M, bn: Any) -> M:
    """A copy of a linear layer that does what it and a batch normalisation after it do.

    Args:
        linear: the linear layer.
        bn: the batch normalisation of its outputs, with running statistics; both are in evaluation mode.

    Raises:
        AssertionError: one of them is in training mode, there are no running statistics, or the numbers of features differ.
    """
    who, sizes = "fuse_linear_bn_eval", {"out_features": vars(linear)["out_features"], "num_features": bn.num_features}
    _require_eval(who, linear, bn)
    fits = sizes["num_features"] in (1, sizes["out_features"])
    checks.require(fits, who, "the batch normalisation must have as many features as the linear layer, or one", AssertionError, **sizes)
    return _fused(linear, bn)
