"""Networks that are built alike from jnn and from torch.nn: each function takes the library as ``nn``."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np


def mlp(nn: Any) -> Any:
    sizes = (784, 1024, 1024, 10)
    pairs = ((nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(sizes))
    return nn.Sequential(*(layer for pair in pairs for layer in pair))


def _normed(nn: Any, inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1, act: Any = None) -> Any:
    """Convolution, batch norm and activation."""
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([] if act is None else [act]))


def _residual(nn: Any, inner: Any, skip: Any, act: Any = None) -> Any:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.skip, self.act = inner, skip, act

        def forward(self, x: Any) -> Any:
            y = self.inner(x) + (x if self.skip is None else self.skip(x))
            return y if self.act is None else self.act(y)

    return Residual()


def _stages(nn: Any, block: Any, widths: tuple[int, ...], depths: tuple[int, ...], width: int) -> list[Any]:
    layers = []
    for stage, (out, depth) in enumerate(zip(widths, depths, strict=True)):
        for i in range(depth):
            layers.append(block(width, out, 2 if stage and not i else 1))
            width = out
    return layers


def _classifier(nn: Any, width: int, classes: int = 10) -> list[Any]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]


def resnet18(nn: Any) -> Any:
    def block(a: int, b: int, stride: int) -> Any:
        inner = nn.Sequential(_normed(nn, a, b, 3, stride, act=nn.ReLU()), _normed(nn, b, b, 3))
        return _residual(nn, inner, None if a == b and stride == 1 else _normed(nn, a, b, 1, stride), nn.ReLU())

    stem = [_normed(nn, 3, 64, 7, 2, act=nn.ReLU()), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *_stages(nn, block, (64, 128, 256, 512), (2, 2, 2, 2), 64), *_classifier(nn, 512))


def resnext(nn: Any) -> Any:
    """The first two stages' worth of ResNeXt-50 32x4d, with one block a stage."""

    def block(a: int, b: int, stride: int) -> Any:
        inner = [_normed(nn, a, b // 2, 1, act=nn.ReLU()), _normed(nn, b // 2, b // 2, 3, stride, 32, nn.ReLU()), _normed(nn, b // 2, b, 1)]
        return _residual(nn, nn.Sequential(*inner), _normed(nn, a, b, 1, stride), nn.ReLU())

    stem = [_normed(nn, 3, 64, 7, 2, act=nn.ReLU()), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *_stages(nn, block, (256, 512, 1024), (1, 1, 1), 64), *_classifier(nn, 1024))


def mobilenet_v2(nn: Any) -> Any:
    def block(a: int, b: int, stride: int) -> Any:
        inner = [
            _normed(nn, a, 6 * a, 1, act=nn.ReLU6()),
            _normed(nn, 6 * a, 6 * a, 3, stride, 6 * a, nn.ReLU6()),
            _normed(nn, 6 * a, b, 1),
        ]
        return _residual(nn, nn.Sequential(*inner), None) if a == b and stride == 1 else nn.Sequential(*inner)

    stem = _normed(nn, 3, 32, 3, 2, act=nn.ReLU6())
    stages = _stages(nn, block, (16, 24, 32, 64, 96, 160), (1, 2, 3, 3, 2, 2), 32)
    return nn.Sequential(stem, *stages, _normed(nn, 160, 640, 1, act=nn.ReLU6()), *_classifier(nn, 640))


def unet(nn: Any) -> Any:
    def double(a: int, b: int) -> Any:
        return nn.Sequential(_normed(nn, a, b, 3, act=nn.ReLU()), _normed(nn, b, b, 3, act=nn.ReLU()))

    widths = (16, 32, 64, 128)

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.downs = nn.ModuleList([double(a, b) for a, b in zip((3, *widths), widths, strict=False)])
            rising = [*zip(widths[::-1], widths[-2::-1], strict=False)]
            self.ups = nn.ModuleList([nn.ConvTranspose2d(a, b, 2, 2) for a, b in rising])
            self.joins = nn.ModuleList([double(2 * b, b) for _, b in rising])
            self.pool, self.out = nn.MaxPool2d(2), nn.Conv2d(widths[0], 2, 1)

        def forward(self, x: Any) -> Any:
            skips = []
            for i, down in enumerate(self.downs):
                x = down(x if not i else self.pool(x))
                skips.append(x)
            for up, join, skip in zip(self.ups, self.joins, skips[-2::-1], strict=True):
                x = join(cat(skip, up(x)))
            return self.out(x)

    return UNet()


def cat(a: Any, b: Any) -> Any:
    """Two arrays of either library, joined by channel."""
    if type(a).__module__.startswith("torch"):
        import torch

        return torch.cat([a, b], 1)
    import jax.numpy as jnp

    return jnp.concatenate([a, b], 1)


def encoder(nn: Any) -> Any:
    layer = nn.TransformerEncoderLayer(256, 8, 1024, dropout=0.1, activation="gelu", batch_first=True, norm_first=True)
    return nn.Sequential(nn.Embedding(1000, 256), nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), nn.Linear(256, 1000))


def lstm(nn: Any) -> Any:
    class LanguageModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.lstm, self.head = nn.Embedding(1000, 256), nn.LSTM(256, 256, 2, batch_first=True), nn.Linear(256, 1000)

        def forward(self, x: Any) -> Any:
            return self.head(self.lstm(self.embedding(x))[0])

    return LanguageModel()


def dcgan(nn: Any) -> Any:
    """The generator, from 64 numbers to an image of 32 by 32."""
    widths, layers = (
        (128, 64, 32),
        [nn.Unflatten(1, (64, 1, 1)), nn.ConvTranspose2d(64, 128, 4, bias=False), nn.BatchNorm2d(128), nn.ReLU()],
    )
    for a, b in itertools.pairwise(widths):
        layers += [nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(widths[-1], 3, 4, 2, 1), nn.Tanh())


class Network(NamedTuple):
    """A builder and one batch: the input, and the target, which are classes where it holds integers."""

    build: Any
    x: np.ndarray
    y: np.ndarray


def networks() -> dict[str, Network]:
    """All of them, with their batches."""
    rng = np.random.default_rng(0)

    def images(n: int, size: int) -> np.ndarray:
        return rng.standard_normal((n, 3, size, size)).astype(np.float32)

    def words(n: int, steps: int) -> np.ndarray:
        return rng.integers(0, 1000, (n, steps))

    flat = rng.standard_normal((128, 784)).astype(np.float32)
    noise = rng.standard_normal((32, 64)).astype(np.float32)
    return {
        "MLP": Network(mlp, flat, rng.integers(0, 10, 128)),
        "ResNet-18": Network(resnet18, images(16, 64), rng.integers(0, 10, 16)),
        "MobileNetV2": Network(mobilenet_v2, images(16, 64), rng.integers(0, 10, 16)),
        "ResNeXt": Network(resnext, images(8, 64), rng.integers(0, 10, 8)),
        "U-Net": Network(unet, images(4, 64), rng.integers(0, 2, (4, 64, 64))),
        "Transformer encoder": Network(encoder, words(8, 128), words(8, 128)),
        "LSTM language model": Network(lstm, words(16, 64), words(16, 64)),
        "DCGAN generator": Network(dcgan, noise, np.tanh(images(32, 32))),
    }
