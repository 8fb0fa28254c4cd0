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


def by_x(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _kernel(call: str, x: tuple[int, ...], w: tuple[int, ...], options: Mapping[str, int]) -> str:
    return " ".join([f"{call}{len(x) - 2}d {by_x(x)}, kernel {by_x(w)}", *(f"{name} {value}" for name, value in options.items())])


def conv(x: tuple[int, ...], w: tuple[int, ...], **options: int) -> Op:
    name = _kernel("conv", x, w, options)
    by_hand, others = lambda x, w: O.conv(x, w, **options), peers.conv(x, w, **options)
    return Op(name, (x, w), lambda F, x, w: getattr(F, name.split()[0])(x, w, **options), by_hand, others)


def conv_transpose(x: tuple[int, ...], w: tuple[int, ...], **options: int) -> Op:
    name = _kernel("conv_transpose", x, w, options)
    by_hand, others = lambda x, w: O.conv_transpose(x, w, **options), peers.conv_transpose(x, w, **options)
    return Op(name, (x, w), lambda F, x, w: getattr(F, name.split()[0])(x, w, **options), by_hand, others)


def pool(kind: str, x: tuple[int, ...], *args: int) -> Op:
    call = f"{kind}_pool{len(x) - 2}d"
    by_hand, others = lambda x: getattr(O, f"{kind}_pool")(x, *args), peers.pool(kind, len(x) - 2, *args)
    return Op(f"{call} {by_x(x)} {args}", (x,), lambda F, x: getattr(F, call)(x, *args), by_hand, others)


def embedding(rows: int, width: int, index: tuple[int, ...]) -> Op:
    shapes, others = (Below(rows, index), (rows, width)), peers.embedding(rows, width)
    return Op(f"embedding {rows}", shapes, lambda F, t, w: F.embedding(t, w), lambda t, w: w[t], others)


def elementwise(name: str, by_hand: Callable[..., Any] | None, *args: Any) -> Op:
    return Op(name, ((256, 4096),), lambda F, x: getattr(F, name)(x, *args), by_hand)


def recurrent(kind: str, steps: int, batch: int, size: int) -> Op:
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


def batch_norm(x: tuple[int, ...]) -> Op:
    return Op(f"batch_norm {by_x(x)}", (x, x[1:2], x[1:2]), _batch_norm, O.batch_norm, peers.batch_norm())


def layer_norm(rows: int, size: int) -> Op:
    shapes = (rows, size), (size,), (size,)
    return Op(f"layer_norm {rows}x{size}", shapes, lambda F, x, w, b: F.layer_norm(x, (size,), w, b), O.layer_norm, peers.layer_norm(size))


def rms_norm(rows: int, size: int) -> Op:
    shapes = (rows, size), (size,)
    return Op(f"rms_norm {rows}x{size}", shapes, lambda F, x, w: F.rms_norm(x, (size,), w, 1e-6), O.rms_norm, peers.rms_norm(size))


def linear(x: tuple[int, ...], outputs: int) -> Op:
    shapes, others = (x, (outputs, x[-1]), (outputs,)), peers.linear(x[-1], outputs)
    return Op(f"linear {by_x(x)} to {outputs}", shapes, lambda F, *a: F.linear(*a), O.linear, others)


def attention(heads: tuple[int, ...], causal: bool = False) -> Op:
    def run(F: Any, *a: Any) -> Any:
        return F.scaled_dot_product_attention(*a, is_causal=causal)

    name = f"attention{' causal' if causal else ''} {by_x(heads)}"
    return Op(name, (heads,) * 3, run, lambda *a: O.attention(*a, causal), peers.attention(causal))


def _ctc(F: Any, x: Any, targets: Any) -> Any:
    steps, batch, _ = x.shape
    return F.ctc_loss(F.log_softmax(x, -1), targets + 1, [steps] * batch, [targets.shape[1]] * batch)


OPS = [
    conv((32, 64, 32, 32), (64, 64, 3, 3), padding=1),
    conv((16, 3, 64, 64), (64, 3, 7, 7), stride=2, padding=3),
    conv((16, 128, 16, 16), (128, 128, 3, 3), padding=1),
    conv((16, 256, 8, 8), (256, 256, 3, 3), padding=1),
    conv((16, 256, 4, 4), (512, 256, 3, 3), stride=2, padding=1),
    conv((16, 512, 2, 2), (512, 512, 3, 3), padding=1),
    conv((32, 256, 14, 14), (64, 256, 1, 1)),
    conv((16, 64, 32, 32), (128, 64, 1, 1), stride=2),
    conv((8, 64, 32, 32), (64, 64, 3, 3), padding=2, dilation=2),
    conv((16, 128, 28, 28), (128, 16, 3, 3), padding=1, groups=8),
    conv((8, 256, 14, 14), (256, 8, 3, 3), padding=1, groups=32),
    conv((32, 128, 28, 28), (128, 1, 3, 3), padding=1, groups=128),
    conv((16, 96, 28, 28), (96, 1, 3, 3), padding=1, stride=2, groups=96),
    conv((16, 384, 7, 7), (384, 1, 5, 5), padding=2, groups=384),
    conv((1, 1, 28, 28), (6, 1, 5, 5)),
    conv((8, 3, 224, 224), (96, 3, 16, 16), stride=16),
    conv((16, 64, 256), (128, 64, 3), padding=1),
    conv((16, 64, 256), (64, 64, 9), padding=8, dilation=2),
    conv((16, 128, 200), (128, 1, 7), padding=3, groups=128),
    conv((2, 16, 16, 16, 16), (32, 16, 3, 3, 3), padding=1),
    conv((2, 64, 8, 8, 8), (128, 64, 3, 3, 3), padding=1, stride=2),
    conv_transpose((16, 128, 8, 8), (128, 64, 4, 4), stride=2, padding=1),
    conv_transpose((16, 64, 16, 16), (64, 32, 2, 2), stride=2),
    conv_transpose((8, 64, 16, 16), (64, 64, 3, 3), padding=1),
    conv_transpose((8, 64, 64), (64, 64, 4), stride=2, padding=1),
    pool("max", (16, 64, 64, 64), 2, 2),
    pool("max", (16, 64, 64, 64), 3, 2, 1),
    pool("max", (16, 64, 32, 32), 3, 1, 1),
    pool("max", (2, 16, 16, 32, 32), 2, 2),
    pool("max", (32, 64, 512), 3, 2),
    pool("avg", (16, 64, 64, 64), 2, 2),
    pool("avg", (16, 64, 32, 32), 3, 2, 1),
    Op("adaptive_avg_pool2d 7", ((16, 128, 28, 28),), lambda F, x: F.adaptive_avg_pool2d(x, 7), lambda x: O.adaptive_avg_pool(x, 7)),
    Op("adaptive_max_pool2d 5", ((16, 128, 28, 28),), lambda F, x: F.adaptive_max_pool2d(x, 5)),
    Op("adaptive_max_pool2d 85 to 7", ((4, 64, 85, 85),), lambda F, x: F.adaptive_max_pool2d(x, 7)),
    Op("lp_pool2d 2", ((16, 64, 32, 32),), lambda F, x: F.lp_pool2d(x, 2.0, 2)),
    Op("unfold 3x3", ((8, 32, 32, 32),), lambda F, x: F.unfold(x, 3, padding=1), lambda x: O.unfold(x, 3, 1)),
    Op("unfold 4x4 s4", ((16, 3, 64, 64),), lambda F, x: F.unfold(x, 4, stride=4), lambda x: O.unfold(x, 4, stride=4)),
    Op("fold 3x3", ((8, 288, 1024),), lambda F, x: F.fold(x, 32, 3, padding=1)),
    linear((256, 1024), 1024),
    linear((8, 128, 512), 2048),
    linear((32, 4096), 4096),
    linear((34, 1446), 16),
    linear((4096, 256), 1),
    Op(
        "bilinear", ((128, 64), (128, 64), (32, 64, 64)), lambda F, *a: F.bilinear(*a), lambda a, b, w: jnp.einsum("ni,oij,nj->no", a, w, b)
    ),
    layer_norm(4096, 768),
    layer_norm(512, 100),
    rms_norm(4096, 768),
    Op(
        "group_norm 16x64x32x32",
        ((16, 64, 32, 32), (64,), (64,)),
        lambda F, x, *a: F.group_norm(x, 8, *a),
        lambda x, *a: O.group_norm(x, 8, *a),
        peers.group_norm(8, 64),
    ),
    Op("instance_norm 16x64x32x32", ((16, 64, 32, 32),), lambda F, x: F.instance_norm(x), lambda x: O.normalized(x, (2, 3))),
    batch_norm((32, 64, 32, 32)),
    batch_norm((16, 256, 8, 8)),
    Op("local_response_norm", ((16, 64, 32, 32),), lambda F, x: F.local_response_norm(x, 5)),
    attention((8, 8, 256, 64)),
    attention((8, 8, 256, 64), causal=True),
    attention((2, 8, 1024, 64)),
    recurrent("LSTM", 64, 32, 256),
    recurrent("LSTM", 128, 8, 64),
    recurrent("GRU", 64, 32, 256),
    embedding(8192, 256, (32, 128)),
    embedding(32000, 768, (8, 512)),
    Op(
        "embedding_bag sum",
        (Below(8192, (64, 32)), (8192, 256)),
        lambda F, t, w: F.embedding_bag(t, w, mode="sum"),
        lambda t, w: w[t].sum(1),
    ),
    Op("cross_entropy 2048x4096", ((2048, 4096), Below(4096, (2048,))), lambda F, *a: F.cross_entropy(*a), O.cross_entropy),
    Op("cross_entropy 4x21x128x128", ((4, 21, 128, 128), Below(21, (4, 128, 128))), lambda F, *a: F.cross_entropy(*a)),
    Op("ctc_loss", ((128, 8, 64), Below(63, (8, 16))), _ctc),
    Op("smooth_l1_loss", ((1024, 155),) * 2, lambda F, *a: F.smooth_l1_loss(*a)),
    Op("mse_loss", ((1024, 1024),) * 2, lambda F, *a: F.mse_loss(*a), lambda a, b: ((a - b) ** 2).mean()),
    Op("bce_with_logits", ((1024, 1024),) * 2, lambda F, *a: F.binary_cross_entropy_with_logits(*a)),
    elementwise("relu", jax.nn.relu),
    Op("relu of images", ((8, 32, 32, 32),), lambda F, x: F.relu(x), jax.nn.relu),
    Op("prelu", ((8, 32, 32, 32), (32,)), lambda F, *a: F.prelu(*a), lambda x, w: jnp.where(x > 0, x, w[:, None, None] * x)),
    elementwise("gelu", lambda x: jax.nn.gelu(x, approximate=False)),
    elementwise("silu", jax.nn.silu),
    elementwise("elu", jax.nn.elu),
    elementwise("softplus", jax.nn.softplus),
    elementwise("mish", jax.nn.mish),
    elementwise("log_softmax", jax.nn.log_softmax, -1),
    elementwise("softmax", jax.nn.softmax, -1),
    elementwise("normalize", None),
    elementwise("glu", None),
    Op(
        "interpolate bilinear x2",
        ((8, 32, 32, 32),),
        lambda F, x: F.interpolate(x, size=64, mode="bilinear"),
        lambda x: O.resize(x, 64, "bilinear"),
    ),
    Op("interpolate nearest x2", ((8, 32, 32, 32),), lambda F, x: F.interpolate(x, size=64), lambda x: O.resize(x, 64, "nearest")),
    Op("interpolate nearest 18 to 9", ((2, 64, 18, 18, 18),), lambda F, x: F.interpolate(x, size=9)),
    Op("interpolate bicubic x2", ((4, 16, 32, 32),), lambda F, x: F.interpolate(x, size=64, mode="bicubic")),
    Op("interpolate bicubic 64 to 150", ((4, 3, 64, 64),), lambda F, x: F.interpolate(x, size=150, mode="bicubic")),
    Op(
        "interpolate antialiased 256 to 100",
        ((4, 3, 256, 256),),
        lambda F, x: F.interpolate(x, size=100, mode="bilinear", antialias=True),
        lambda x: O.resize(x, 100, "bilinear"),
    ),
    Op("grid_sample", ((8, 32, 32, 32), (8, 32, 32, 2)), lambda F, x, g: F.grid_sample(x, g, align_corners=False)),
    Op("grid_sample 40 to 8", ((16, 64, 40, 40), (16, 8, 8, 2)), lambda F, x, g: F.grid_sample(x, g, align_corners=False)),
    Op("grid_sample bicubic", ((1, 3, 224, 224), (1, 224, 224, 2)), lambda F, x, g: F.grid_sample(x, g, "bicubic", align_corners=False)),
    Op("grid_sample 4x3x224x224", ((4, 3, 224, 224), (4, 224, 224, 2)), lambda F, x, g: F.grid_sample(x, g, align_corners=False)),
    Op("channel_shuffle 4", ((4, 32, 47, 47),), lambda F, x: F.channel_shuffle(x, 4)),
    Op("pixel_shuffle 2", ((8, 64, 32, 32),), lambda F, x: F.pixel_shuffle(x, 2), lambda x: O.pixel_shuffle(x, 2)),
    Op("pad 1", ((16, 16, 64, 64),), lambda F, x: F.pad(x, (1, 1, 1, 1)), lambda x: jnp.pad(x, [(0, 0)] * 2 + [(1, 1)] * 2)),
    Op(
        "pad reflect",
        ((8, 64, 32, 32),),
        lambda F, x: F.pad(x, (3, 3, 3, 3), "reflect"),
        lambda x: jnp.pad(x, [(0, 0)] * 2 + [(3, 3)] * 2, "reflect"),
    ),
    Op("cosine_similarity", ((1024, 512),) * 2, lambda F, *a: F.cosine_similarity(*a)),
    Op("pairwise_distance", ((1024, 512),) * 2, lambda F, *a: F.pairwise_distance(*a)),
    Op("pdist", ((300, 64),), lambda F, x: F.pdist(x)),
    Op("triplet_margin_loss", ((2048, 128),) * 3, lambda F, *a: F.triplet_margin_loss(*a)),
]
