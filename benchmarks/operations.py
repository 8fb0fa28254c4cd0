"""The operations that are measured, and what is written by hand for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import obvious as O
import peers
import torch

import jnn


class Op(NamedTuple):
    """``run(F, *arrays)`` calls jnn.functional or torch.nn.functional alike; ``by_hand(*arrays)`` is the obvious JAX."""

    name: str
    shapes: tuple[Any, ...]
    run: Callable[..., Any]
    by_hand: Callable[..., Any] | None = None
    peers: Mapping[str, peers.Peer] = {}


class Below(NamedTuple):
    """Integers below ``limit`` of a shape."""

    limit: int
    shape: tuple[int, ...]


def _conv(name: str, x: tuple[int, ...], w: tuple[int, ...], **options: int) -> Op:
    call = f"conv{len(x) - 2}d"
    by_hand, others = lambda x, w: O.conv(x, w, **options), peers.conv(x, w, **options)
    return Op(f"{call} {name}", (x, w), lambda F, x, w: getattr(F, call)(x, w, **options), by_hand, others)


def _conv_transpose(name: str, x: tuple[int, ...], w: tuple[int, ...], **options: int) -> Op:
    call = f"conv_transpose{len(x) - 2}d"
    by_hand, others = lambda x, w: O.conv_transpose(x, w, **options), peers.conv_transpose(x, w, **options)
    return Op(f"{call} {name}", (x, w), lambda F, x, w: getattr(F, call)(x, w, **options), by_hand, others)


def _pool(kind: str, x: tuple[int, ...], *args: int) -> Op:
    call = f"{kind}_pool{len(x) - 2}d"
    by_hand, others = lambda x: getattr(O, f"{kind}_pool")(x, *args), peers.pool(kind, len(x) - 2, *args)
    return Op(f"{call} {args}", (x,), lambda F, x: getattr(F, call)(x, *args), by_hand, others)


def _embedding(rows: int, width: int, index: tuple[int, ...]) -> Op:
    shapes, others = (Below(rows, index), (rows, width)), peers.embedding(rows, width)
    return Op(f"embedding {rows}", shapes, lambda F, t, w: F.embedding(t, w), lambda t, w: w[t], others)


def _elementwise(name: str, by_hand: Callable[..., Any] | None, *args: Any) -> Op:
    return Op(name, ((256, 4096),), lambda F, x: getattr(F, name)(x, *args), by_hand)


def _recurrent(kind: str, steps: int, batch: int, size: int) -> Op:
    gates = {"LSTM": 4, "GRU": 3}[kind] * size
    shapes = (steps, batch, size), (gates, size), (gates, size), (gates,), (gates,)

    def run(F: Any, x: Any, *weights: Any) -> Any:
        if F is torch.nn.functional:
            state = torch.zeros(1, batch, size)
            call, start = (torch.lstm, (state, state)) if kind == "LSTM" else (torch.gru, state)
            return call(x, start, weights, True, 1, 0.0, True, False, False)[0]
        layer = getattr(jnn.layers, kind)(size, size)
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        return layer.apply(dict(zip(names, weights, strict=True)), {}, x)[0][0]

    return Op(f"{kind} T{steps} B{batch} H{size}", shapes, run, getattr(O, kind.lower()), peers.lstm(size) if kind == "LSTM" else {})


def _moments(F: Any, channels: int) -> tuple[Any, Any]:
    make = torch if F is torch.nn.functional else jnp
    return make.zeros(channels), make.ones(channels)


def _batch_norm(F: Any, x: Any, w: Any, b: Any) -> Any:
    if F is torch.nn.functional:
        return F.batch_norm(x, *_moments(F, x.shape[1]), w, b, True)
    layer = getattr(jnn.layers, f"BatchNorm{x.ndim - 2}d")(x.shape[1])
    mean, var = _moments(F, x.shape[1])
    buffers = {"running_mean": mean, "running_var": var, "num_batches_tracked": jnp.zeros((), int)}
    return layer.apply({"weight": w, "bias": b}, buffers, x, train=True)[0]


def _layer_norm(rows: int, size: int) -> Op:
    shapes = (rows, size), (size,), (size,)
    return Op(f"layer_norm {rows}x{size}", shapes, lambda F, x, w, b: F.layer_norm(x, (size,), w, b), O.layer_norm, peers.layer_norm(size))


HEADS, LONG = (8, 8, 256, 64), (2, 8, 1024, 64)

OPS = [
    _conv("32x64x32x32 3x3", (32, 64, 32, 32), (64, 64, 3, 3), padding=1),
    _conv("16x3x64x64 7x7 s2", (16, 3, 64, 64), (64, 3, 7, 7), stride=2, padding=3),
    _conv("16x128x16x16 3x3", (16, 128, 16, 16), (128, 128, 3, 3), padding=1),
    _conv("16x256x8x8 3x3", (16, 256, 8, 8), (256, 256, 3, 3), padding=1),
    _conv("16x256x4x4 3x3 s2", (16, 256, 4, 4), (512, 256, 3, 3), stride=2, padding=1),
    _conv("16x512x2x2 3x3", (16, 512, 2, 2), (512, 512, 3, 3), padding=1),
    _conv("32x256x14x14 1x1", (32, 256, 14, 14), (64, 256, 1, 1)),
    _conv("16x64x32x32 1x1 s2", (16, 64, 32, 32), (128, 64, 1, 1), stride=2),
    _conv("8x64x32x32 3x3 dilated", (8, 64, 32, 32), (64, 64, 3, 3), padding=2, dilation=2),
    _conv("16x128x28x28 8 groups", (16, 128, 28, 28), (128, 16, 3, 3), padding=1, groups=8),
    _conv("8x256x14x14 32 groups", (8, 256, 14, 14), (256, 8, 3, 3), padding=1, groups=32),
    _conv("32x128x28x28 depthwise", (32, 128, 28, 28), (128, 1, 3, 3), padding=1, groups=128),
    _conv("16x96x28x28 depthwise s2", (16, 96, 28, 28), (96, 1, 3, 3), padding=1, stride=2, groups=96),
    _conv("16x384x7x7 depthwise 5x5", (16, 384, 7, 7), (384, 1, 5, 5), padding=2, groups=384),
    _conv("1x1x28x28 5x5", (1, 1, 28, 28), (6, 1, 5, 5)),
    _conv("16x64x256 k3", (16, 64, 256), (128, 64, 3), padding=1),
    _conv("16x64x256 k9 dilated", (16, 64, 256), (64, 64, 9), padding=8, dilation=2),
    _conv("16x128x200 depthwise k7", (16, 128, 200), (128, 1, 7), padding=3, groups=128),
    _conv("2x16x16x16x16 3x3x3", (2, 16, 16, 16, 16), (32, 16, 3, 3, 3), padding=1),
    _conv("2x64x8x8x8 3x3x3 s2", (2, 64, 8, 8, 8), (128, 64, 3, 3, 3), padding=1, stride=2),
    _conv_transpose("16x128x8x8 4x4 s2", (16, 128, 8, 8), (128, 64, 4, 4), stride=2, padding=1),
    _conv_transpose("16x64x16x16 2x2 s2", (16, 64, 16, 16), (64, 32, 2, 2), stride=2),
    _conv_transpose("8x64x16x16 3x3", (8, 64, 16, 16), (64, 64, 3, 3), padding=1),
    _conv_transpose("8x64x64 k4 s2", (8, 64, 64), (64, 64, 4), stride=2, padding=1),
    _pool("max", (16, 64, 64, 64), 2, 2),
    _pool("max", (16, 64, 64, 64), 3, 2, 1),
    _pool("max", (16, 64, 32, 32), 3, 1, 1),
    _pool("max", (2, 16, 16, 32, 32), 2, 2),
    _pool("max", (32, 64, 512), 3, 2),
    _pool("avg", (16, 64, 64, 64), 2, 2),
    _pool("avg", (16, 64, 32, 32), 3, 2, 1),
    Op("adaptive_avg_pool2d 7", ((16, 128, 28, 28),), lambda F, x: F.adaptive_avg_pool2d(x, 7), lambda x: O.adaptive_avg_pool(x, 7)),
    Op("adaptive_max_pool2d 5", ((16, 128, 28, 28),), lambda F, x: F.adaptive_max_pool2d(x, 5)),
    Op("lp_pool2d 2", ((16, 64, 32, 32),), lambda F, x: F.lp_pool2d(x, 2.0, 2)),
    Op("unfold 3x3", ((8, 32, 32, 32),), lambda F, x: F.unfold(x, 3, padding=1), lambda x: O.unfold(x, 3, 1)),
    Op("unfold 4x4 s4", ((16, 3, 64, 64),), lambda F, x: F.unfold(x, 4, stride=4), lambda x: O.unfold(x, 4, stride=4)),
    Op("fold 3x3", ((8, 288, 1024),), lambda F, x: F.fold(x, 32, 3, padding=1)),
    Op("linear 256x1024", ((256, 1024), (1024, 1024), (1024,)), lambda F, *a: F.linear(*a), O.linear, peers.linear(1024, 1024)),
    Op("linear 8x128x512", ((8, 128, 512), (2048, 512), (2048,)), lambda F, *a: F.linear(*a), O.linear, peers.linear(512, 2048)),
    Op("linear 32x4096", ((32, 4096), (4096, 4096), (4096,)), lambda F, *a: F.linear(*a), O.linear, peers.linear(4096, 4096)),
    Op(
        "bilinear", ((128, 64), (128, 64), (32, 64, 64)), lambda F, *a: F.bilinear(*a), lambda a, b, w: jnp.einsum("ni,oij,nj->no", a, w, b)
    ),
    Op(
        "layer_norm 4096x768",
        ((4096, 768), (768,), (768,)),
        lambda F, x, w, b: F.layer_norm(x, (768,), w, b),
        O.layer_norm,
        peers.layer_norm(768),
    ),
    Op(
        "layer_norm 512x100",
        ((512, 100), (100,), (100,)),
        lambda F, x, w, b: F.layer_norm(x, (100,), w, b),
        O.layer_norm,
        peers.layer_norm(100),
    ),
    Op("rms_norm 4096x768", ((4096, 768), (768,)), lambda F, x, w: F.rms_norm(x, (768,), w, 1e-6), O.rms_norm, peers.rms_norm(768)),
    Op(
        "group_norm 16x64x32x32",
        ((16, 64, 32, 32), (64,), (64,)),
        lambda F, x, *a: F.group_norm(x, 8, *a),
        lambda x, *a: O.group_norm(x, 8, *a),
        peers.group_norm(8, 64),
    ),
    Op("instance_norm 16x64x32x32", ((16, 64, 32, 32),), lambda F, x: F.instance_norm(x), lambda x: O.normalized(x, (2, 3))),
    Op("batch_norm 32x64x32x32", ((32, 64, 32, 32), (64,), (64,)), _batch_norm, O.batch_norm, peers.batch_norm()),
    Op("batch_norm 16x256x8x8", ((16, 256, 8, 8), (256,), (256,)), _batch_norm, O.batch_norm, peers.batch_norm()),
    Op("local_response_norm", ((16, 64, 32, 32),), lambda F, x: F.local_response_norm(x, 5)),
    Op("attention 8x8x256x64", (HEADS,) * 3, lambda F, *a: F.scaled_dot_product_attention(*a), O.attention, peers.attention()),
    Op(
        "attention causal 8x8x256x64",
        (HEADS,) * 3,
        lambda F, *a: F.scaled_dot_product_attention(*a, is_causal=True),
        lambda *a: O.attention(*a, True),
        peers.attention(True),
    ),
    Op("attention 2x8x1024x64", (LONG,) * 3, lambda F, *a: F.scaled_dot_product_attention(*a), O.attention, peers.attention()),
    _recurrent("LSTM", 64, 32, 256),
    _recurrent("LSTM", 128, 8, 64),
    _recurrent("GRU", 64, 32, 256),
    _embedding(8192, 256, (32, 128)),
    _embedding(32000, 768, (8, 512)),
    Op(
        "embedding_bag sum",
        (Below(8192, (64, 32)), (8192, 256)),
        lambda F, t, w: F.embedding_bag(t, w, mode="sum"),
        lambda t, w: w[t].sum(1),
    ),
    Op("cross_entropy 2048x4096", ((2048, 4096), Below(4096, (2048,))), lambda F, *a: F.cross_entropy(*a), O.cross_entropy),
    Op("mse_loss", ((1024, 1024),) * 2, lambda F, *a: F.mse_loss(*a), lambda a, b: ((a - b) ** 2).mean()),
    Op("bce_with_logits", ((1024, 1024),) * 2, lambda F, *a: F.binary_cross_entropy_with_logits(*a)),
    _elementwise("relu", jax.nn.relu),
    _elementwise("gelu", lambda x: jax.nn.gelu(x, approximate=False)),
    _elementwise("silu", jax.nn.silu),
    _elementwise("elu", jax.nn.elu),
    _elementwise("softplus", jax.nn.softplus),
    _elementwise("mish", jax.nn.mish),
    _elementwise("log_softmax", jax.nn.log_softmax, -1),
    _elementwise("softmax", jax.nn.softmax, -1),
    _elementwise("normalize", None),
    Op(
        "interpolate bilinear x2",
        ((8, 32, 32, 32),),
        lambda F, x: F.interpolate(x, size=64, mode="bilinear"),
        lambda x: O.resize(x, 64, "bilinear"),
    ),
    Op("interpolate nearest x2", ((8, 32, 32, 32),), lambda F, x: F.interpolate(x, size=64), lambda x: O.resize(x, 64, "nearest")),
    Op("interpolate bicubic x2", ((4, 16, 32, 32),), lambda F, x: F.interpolate(x, size=64, mode="bicubic")),
    Op("interpolate bicubic 64 to 150", ((4, 3, 64, 64),), lambda F, x: F.interpolate(x, size=150, mode="bicubic")),
    Op(
        "interpolate antialiased 256 to 100",
        ((4, 3, 256, 256),),
        lambda F, x: F.interpolate(x, size=100, mode="bilinear", antialias=True),
        lambda x: O.resize(x, 100, "bilinear"),
    ),
    Op("grid_sample", ((8, 32, 32, 32), (8, 32, 32, 2)), lambda F, x, g: F.grid_sample(x, g, align_corners=False)),
    Op("pixel_shuffle 2", ((8, 64, 32, 32),), lambda F, x: F.pixel_shuffle(x, 2), lambda x: O.pixel_shuffle(x, 2)),
    Op(
        "pad reflect",
        ((8, 64, 32, 32),),
        lambda F, x: F.pad(x, (3, 3, 3, 3), "reflect"),
        lambda x: jnp.pad(x, [(0, 0)] * 2 + [(3, 3)] * 2, "reflect"),
    ),
    Op("cosine_similarity", ((1024, 512),) * 2, lambda F, *a: F.cosine_similarity(*a)),
    Op("pairwise_distance", ((1024, 512),) * 2, lambda F, *a: F.pairwise_distance(*a)),
]
