"""Operations of every family with sizes drawn at random, so that what is measured is not only what was looked at before.

Writes ``benchmarks/results/drawn.md``, ``.json`` and ``.png``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import harness
import operations
import ops
from operations import Below, Op, by_x

# A call has at most so many products of a multiplication and a sum, and so many numbers in its largest array.
_PRODUCTS, _NUMBERS = 2**30, 2**23
_LEAST_NUMBERS = 2**14


def drawn(seed: int, count: int) -> list[Op]:
    """``count`` operations, of each family in turn."""
    rng = random.Random(seed)
    families = list(FAMILIES)
    rng.shuffle(families)
    # Peers are measured with the table: they would double the time of each.
    return [families[i % len(families)](rng)._replace(peers={}) for i in range(count)]


def _size(rng: random.Random, low: int, high: int) -> int:
    """Of ``low`` to ``high``, small ones as often as large ones; round ones in half of the cases."""
    size = math.exp(rng.uniform(math.log(low), math.log(high + 1)))
    return min(high, max(low, 2 ** round(math.log2(size)) if rng.random() < 0.5 else int(size)))


def _until(draw: Callable[[], tuple[tuple[int, ...], float]]) -> tuple[int, ...]:
    """The first shape that is neither too small nor too large, of those that ``draw`` gives with their products."""
    while True:
        shape, products = draw()
        if _LEAST_NUMBERS <= math.prod(shape) <= _NUMBERS and products <= _PRODUCTS:
            return shape


def _shape(rng: random.Random, *bounds: tuple[int, int]) -> tuple[int, ...]:
    return _until(lambda: (tuple(_size(rng, *b) for b in bounds), 0))


def _image(rng: random.Random, dims: int | None = None, channels: int = 1) -> tuple[int, ...]:
    """Channels are a multiple of ``channels``."""
    dims = dims or rng.choice([1, 2, 2, 2, 3])
    largest = {1: 1024, 2: 128, 3: 32}[dims]

    def draw() -> tuple[tuple[int, ...], float]:
        size = _size(rng, 4, largest)
        return (_size(rng, 1, 64), _size(rng, 1, 512 // channels) * channels, *[size] * dims), 0

    return _until(draw)


def _conv(rng: random.Random) -> Op:
    while True:
        x = _image(rng)
        dims, c = len(x) - 2, x[1]
        kernel = rng.choice([1, 3, 3, 3, 5, 7])
        options = {"stride": rng.choice([1, 1, 2]), "padding": kernel // 2, "dilation": rng.choice([1, 1, 1, 2])}
        groups = rng.choice([1, 1, 1, c, *(g for g in (2, 4, 8, 32) if c % g == 0)])
        o = c if groups == c else groups * _size(rng, 1, max(1, 512 // groups))
        span = options["dilation"] * (kernel - 1)
        y = (x[-1] + 2 * options["padding"] - span - 1) // options["stride"] + 1
        if y > 0 and x[0] * o * y**dims * c // groups * kernel**dims <= _PRODUCTS:
            return operations.conv(x, (o, c // groups, *[kernel] * dims), groups=groups, **options)


def _conv_transpose(rng: random.Random) -> Op:
    while True:
        x = _image(rng)
        dims, kernel, stride = len(x) - 2, *rng.choice([(2, 2), (4, 2), (3, 1), (3, 2)])
        o = _size(rng, 1, 256)
        if math.prod(x) * o * kernel**dims <= _PRODUCTS and x[0] * o * (stride * x[-1]) ** dims <= _NUMBERS:
            return operations.conv_transpose(x, (x[1], o, *[kernel] * dims), stride=stride, padding=(kernel - stride + 1) // 2)


def _pool(rng: random.Random) -> Op:
    kernel, stride, padding = rng.choice([(2, 2, 0), (3, 2, 1), (3, 1, 1), (3, 3, 0)])
    return operations.pool(rng.choice(["max", "avg"]), _image(rng), kernel, stride, padding)


def _adaptive_pool(rng: random.Random) -> Op:
    x, kind, size = _image(rng), rng.choice(["max", "avg"]), rng.choice([1, 1, 2, 3, 6, 7])
    call = f"adaptive_{kind}_pool{len(x) - 2}d"
    return Op(f"{call} {by_x(x)} to {size}", (x,), lambda F, x: getattr(F, call)(x, size))


def _unfold(rng: random.Random) -> Op:
    kernel, stride, padding = rng.choice([(3, 1, 1), (2, 2, 0), (4, 2, 1)])
    n, c, size = _until(lambda: ((_size(rng, 1, 32), _size(rng, 1, 64), _size(rng, 4, 64)), 0))
    size *= stride
    x = n, c, size, size
    if rng.random() < 0.5:
        return Op(f"unfold {by_x(x)} {kernel} {stride}", (x,), lambda F, x: F.unfold(x, kernel, 1, padding, stride))
    places = (size + 2 * padding - kernel) // stride + 1
    return Op(
        f"fold {by_x(x)} {kernel} {stride}", ((n, c * kernel**2, places**2),), lambda F, x: F.fold(x, size, kernel, 1, padding, stride)
    )


def _linear(rng: random.Random) -> Op:
    def draw() -> tuple[tuple[int, ...], float]:
        shape = _size(rng, 1, 4096), _size(rng, 8, 4096), _size(rng, 8, 4096)
        return (*shape[:2], 1), math.prod(shape)

    rows, terms, _ = _until(draw)
    return operations.linear((rows, terms), _size(rng, 8, max(8, min(4096, _PRODUCTS // (rows * terms)))))


def _norm(rng: random.Random) -> Op:
    kind = rng.choice(["layer", "rms", "group", "instance", "batch"])
    if kind in ("layer", "rms"):
        rows, size = _shape(rng, (16, 8192), (16, 4096))
        return (operations.layer_norm if kind == "layer" else operations.rms_norm)(rows, size)
    x = _image(rng, channels=8)
    if kind == "batch":
        return operations.batch_norm(x)
    if kind == "instance":
        return Op(f"instance_norm {by_x(x)}", (x,), lambda F, x: F.instance_norm(x))
    return Op(f"group_norm {by_x(x)}", (x, x[1:2], x[1:2]), lambda F, x, w, b: F.group_norm(x, 8, w, b))


def _attention(rng: random.Random) -> Op:
    def draw() -> tuple[tuple[int, ...], float]:
        shape = _size(rng, 1, 16), _size(rng, 1, 16), _size(rng, 8, 1024), rng.choice([16, 32, 64, 80, 128])
        return shape, 2 * math.prod(shape) * shape[2]

    return operations.attention(_until(draw), causal=rng.random() < 0.5)


def _recurrent(rng: random.Random) -> Op:
    def draw() -> tuple[tuple[int, ...], float]:
        shape = _size(rng, 4, 256), _size(rng, 1, 64), _size(rng, 16, 512)
        return shape, 8 * math.prod(shape) * shape[2]

    return operations.recurrent(rng.choice(["LSTM", "GRU"]), *_until(draw))


def _embedding(rng: random.Random) -> Op:
    rows, width = _shape(rng, (128, 40000), (16, 1024))
    entries = _size(rng, 64, max(64, min(16384, _NUMBERS // width)))
    if rng.random() < 0.5:
        return operations.embedding(rows, width, (entries // 16, 16))
    mode, bags = rng.choice(["sum", "mean", "max"]), max(1, entries // 16)
    return Op(
        f"embedding_bag {mode} {rows}x{width} {bags}",
        (Below(rows, (bags, 16)), (rows, width)),
        lambda F, t, w: F.embedding_bag(t, w, mode=mode),
    )


_LOSSES = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy_with_logits", "poisson_nll_loss", "kl_div")
_LOSSES_OF_SIGNS = ("soft_margin_loss", "hinge_embedding_loss")


def _loss(rng: random.Random) -> Op:
    call, reduction = rng.choice([*_LOSSES, *_LOSSES_OF_SIGNS]), rng.choice(["mean", "mean", "none"])
    shape = _shape(rng, (16, 4096), (16, 4096))
    if call in _LOSSES_OF_SIGNS:
        return Op(
            f"{call} {reduction} {by_x(shape)}",
            (shape, Below(2, shape)),
            lambda F, x, t: getattr(F, call)(x, 2 * t - 1, reduction=reduction),
        )
    fixed = {"kl_div": "batchmean"} if reduction == "mean" else {}
    return Op(
        f"{call} {reduction} {by_x(shape)}", (shape,) * 2, lambda F, x, t: getattr(F, call)(x, t, reduction=fixed.get(call, reduction))
    )


def _classes(rng: random.Random) -> Op:
    call = rng.choice(["cross_entropy", "nll_loss", "multi_margin_loss"])
    if call != "multi_margin_loss" and rng.random() < 0.3:
        n, c, size = _until(lambda: ((_size(rng, 1, 16), _size(rng, 2, 64), _size(rng, 8, 128) ** 2), 0))
        x = n, c, math.isqrt(size), math.isqrt(size)
        return Op(f"{call} {by_x(x)}", (x, Below(c, (n, *x[2:]))), lambda F, x, t: getattr(F, call)(x, t))
    rows, classes = _shape(rng, (16, 4096), (2, 32768))
    return Op(f"{call} {rows}x{classes}", ((rows, classes), Below(classes, (rows,))), lambda F, x, t: getattr(F, call)(x, t))


def _pairs(rng: random.Random) -> Op:
    shape = _shape(rng, (16, 4096), (16, 2048))
    call = rng.choice(["cosine_similarity", "pairwise_distance", "triplet_margin_loss", "margin_ranking_loss", "normalize", "pdist"])
    if call == "pdist":
        rows, size = _size(rng, 16, 512), _size(rng, 8, 512)
        return Op(f"pdist {rows}x{size}", ((rows, size),), lambda F, x: F.pdist(x))
    count = {"triplet_margin_loss": 3, "normalize": 1}.get(call, 2)
    if call == "margin_ranking_loss":
        return Op(f"{call} {by_x(shape)}", (shape, shape, Below(2, shape)), lambda F, x, y, t: F.margin_ranking_loss(x, y, 2 * t - 1))
    return Op(f"{call} {by_x(shape)}", (shape,) * count, lambda F, *a: getattr(F, call)(*a))


_FUNCTIONS = (
    *("relu", "relu6", "elu", "selu", "celu", "leaky_relu", "hardtanh", "hardswish", "hardsigmoid", "hardshrink", "softshrink"),
    *("gelu", "silu", "mish", "softplus", "softsign", "tanhshrink", "logsigmoid", "sigmoid", "tanh", "glu"),
)


def _elementwise(rng: random.Random) -> Op:
    call, shape = rng.choice(_FUNCTIONS), rng.choice([_image(rng), _shape(rng, (16, 4096), (16, 4096))])
    # An even number of the last axis, which gated linear units halve.
    shape = (*shape[:-1], 2 * shape[-1])
    return Op(f"{call} {by_x(shape)}", (shape,), lambda F, x: getattr(F, call)(x))


def _softmax(rng: random.Random) -> Op:
    call, axis = rng.choice(["softmax", "log_softmax", "softmin"]), rng.choice([-1, -1, 1])
    shape = _shape(rng, (1, 64), (2, 256), (2, 2048))
    return Op(f"{call} {by_x(shape)} {axis}", (shape,), lambda F, x: getattr(F, call)(x, axis))


_MODES = {
    1: ("linear", "nearest"),
    2: ("bilinear", "bicubic", "nearest", "nearest-exact", "area", "antialiased"),
    3: ("trilinear", "nearest"),
}


def _interpolate(rng: random.Random) -> Op:
    y = _image(rng)
    mode = rng.choice(_MODES[len(y) - 2])
    x = (*y[:2], *[max(1, round(y[-1] * rng.choice([0.5, 0.5, 2, rng.uniform(0.3, 3)])))] * (len(y) - 2))
    options = {"mode": "bilinear", "antialias": True} if mode == "antialiased" else {"mode": mode}
    return Op(f"interpolate {mode} {by_x(x)} to {y[-1]}", (x,), lambda F, x: F.interpolate(x, size=y[2:], **options))


def _grid_sample(rng: random.Random) -> Op:
    x = _image(rng, rng.choice([2, 2, 3]))
    dims, size = len(x) - 2, _size(rng, 4, {4: 64, 5: 16}[len(x)])
    options = {"mode": rng.choice(["bilinear", "nearest"]), "padding_mode": rng.choice(["zeros", "border", "reflection"])}
    grid = (x[0], *[size] * dims, dims)
    return Op(
        f"grid_sample {by_x(x)} to {size} {' '.join(options.values())}",
        (x, grid),
        lambda F, x, g: F.grid_sample(x, g, **options, align_corners=False),
    )


def _pad(rng: random.Random) -> Op:
    x, mode = _image(rng), rng.choice(["reflect", "replicate", "circular", "constant"])
    pads = [rng.randint(1, 3) for _ in range(2 * (len(x) - 2))]
    return Op(f"pad {mode} {by_x(x)} {pads}", (x,), lambda F, x: F.pad(x, pads, mode))


def _shuffle(rng: random.Random) -> Op:
    call, factor = rng.choice(["pixel_shuffle", "pixel_unshuffle", "channel_shuffle"]), rng.choice([2, 2, 3, 4])
    n, c, h, w = _image(rng, 2)
    shape = {"pixel_shuffle": (n, c * factor**2, h, w), "pixel_unshuffle": (n, c, h * factor, w * factor)}.get(call, (n, c * factor, h, w))
    while math.prod(shape) > _NUMBERS:
        shape = (max(1, shape[0] // 2), *shape[1:]) if shape[0] > 1 else (1, shape[1] // 2 // factor**2 * factor**2, *shape[2:])
    return Op(f"{call} {by_x(shape)} {factor}", (shape,), lambda F, x: getattr(F, call)(x, factor))


def _ctc(rng: random.Random) -> Op:
    steps, batch, classes, length = _size(rng, 20, 200), _size(rng, 1, 32), _size(rng, 8, 128), _size(rng, 4, 20)

    def run(F: Any, x: Any, targets: Any) -> Any:
        return F.ctc_loss(F.log_softmax(x, -1), targets + 1, [steps] * batch, [min(length, steps // 2)] * batch)

    return Op(f"ctc_loss {steps}x{batch}x{classes}", ((steps, batch, classes), Below(classes - 1, (batch, length))), run)


FAMILIES: tuple[Callable[[random.Random], Op], ...] = (
    *(_conv, _conv_transpose, _pool, _adaptive_pool, _unfold, _linear, _norm, _attention, _recurrent, _embedding, _loss, _classes),
    *(_pairs, _elementwise, _softmax, _interpolate, _grid_sample, _pad, _shuffle, _ctc),
)


def main() -> None:
    options = harness.arguments(__doc__, budget=0.1, seed=0, count=100)
    rows = ops.measured(drawn(options.seed, options.count), options)
    harness.save("drawn", f"Operations drawn at random, seed {options.seed}", rows, options)


if __name__ == "__main__":
    main()
