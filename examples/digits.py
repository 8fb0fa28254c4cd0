"""Train a convolutional network on handwritten digits, in each of jnn's styles.

    python examples/digits.py                          the module style, on scikit-learn's digits
    python examples/digits.py --style functional       pure layers and optax
    python examples/digits.py --style pmap --devices 2 data parallel over local devices, batch norm synchronised
    python examples/digits.py --data DIR               MNIST from its IDX files

Writes a learning curve, a confusion matrix and the weights to ``--out``.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from digits_data import DataError, Digits, mnist, sklearn_digits
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

import jnn as nn
import jnn.functional as F
from jnn import layers as L
from jnn.core import tree

mpl.use("Agg")
import matplotlib.pyplot as plt

AXIS = "devices"


class Net(nn.Module):
    """Two convolutions and two linear layers, written as in torch."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Dropout(0.25),
        )
        self.hidden = nn.Linear(64 * (size // 2) ** 2, 128)
        self.dropout = nn.Dropout(0.5)
        self.output = nn.Linear(128, 10)

    def forward(self, x: jax.Array) -> jax.Array:
        x = F.relu(self.hidden(jnp.reshape(self.features(x), (x.shape[0], -1))))
        return self.output(self.dropout(x))


def layers(size: int, norm: Any) -> L.Sequential:
    """The same network as a pure layer."""
    return L.Sequential(
        L.Conv2d(1, 32, 3, padding=1, bias=False),
        norm(32),
        L.ReLU(),
        L.Conv2d(32, 64, 3, padding=1, bias=False),
        norm(64),
        L.ReLU(),
        L.MaxPool2d(2),
        L.Dropout(0.25),
        L.Flatten(),
        L.Linear(64 * (size // 2) ** 2, 128),
        L.ReLU(),
        L.Dropout(0.5),
        L.Linear(128, 10),
    )


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The share of rows whose largest logit is the label's."""
    return jnp.mean((jnp.argmax(logits, -1) == labels).astype(jnp.float32))


class ModuleStyle:
    """PyTorch's way: a stateful model, an optimizer, and a loss of the model."""

    def __init__(self, size: int, optimizer: optax.GradientTransformation, seed: int) -> None:
        nn.manual_seed(seed)
        self.model = Net(size)

        def loss_fn(model: nn.Module, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = model(x)
            return F.cross_entropy(logits, y), accuracy(logits, y)

        self.step = nn.train_step(loss_fn, nn.optim.Optimizer(self.model, optimizer), has_aux=True)

    def train(self, x: np.ndarray, y: np.ndarray) -> tuple[jax.Array, jax.Array]:
        self.model.train()
        return self.step(x, y)

    def logits(self, x: np.ndarray) -> jax.Array:
        return self.model.eval()(x)

    def state(self) -> dict[str, Any]:
        return dict(self.model.state_dict())

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state)


class FunctionalStyle:
    """JAX's way: a hashable layer, explicit trees and keys, optax."""

    axis: str | None = None

    def __init__(self, size: int, optimizer: optax.GradientTransformation, seed: int) -> None:
        self.net = layers(size, self.norm)
        init_key, self.key = jax.random.split(jax.random.key(seed))
        self.params, self.buffers = self.net.init(init_key)
        self.optimizer, self.opt_state = optimizer, optimizer.init(self.params)
        self.evaluate = jax.jit(self.net.apply)
        self.run = self.compile(self.update)

    norm = staticmethod(L.BatchNorm2d)

    @staticmethod
    def compile(update: Any) -> Any:
        return jax.jit(update, donate_argnums=(0, 1, 2))

    def update(self, params: Any, buffers: Any, opt_state: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> Any:
        """One step of gradient descent; under pmap, on this device's part of the batch."""

        def loss_fn(params: Any) -> Any:
            logits, new_buffers = self.net.apply(params, buffers, x, train=True, key=key)
            return F.cross_entropy(logits, y), (new_buffers, accuracy(logits, y))

        (loss, (new_buffers, correct)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        if self.axis is not None:
            loss, correct, grads = jax.lax.pmean((loss, correct, grads), self.axis)
        updates, opt_state = self.optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), new_buffers, opt_state, loss, correct

    def train(self, x: np.ndarray, y: np.ndarray) -> tuple[jax.Array, jax.Array]:
        self.key, key = jax.random.split(self.key)
        self.params, self.buffers, self.opt_state, loss, correct = self.run(self.params, self.buffers, self.opt_state, x, y, key)
        return loss, correct

    def logits(self, x: np.ndarray) -> jax.Array:
        return self.evaluate(self.params, self.buffers, x)[0]

    def state(self) -> dict[str, Any]:
        return {f"{kind}.{name}": v for kind in ("params", "buffers") for name, v in tree.flatten(getattr(self, kind)).items()}

    def load(self, state: dict[str, Any]) -> None:
        whole = tree.unflatten({name: jnp.asarray(v) for name, v in state.items()})
        self.params, self.buffers = whole["params"], whole["buffers"]


class PmapStyle(FunctionalStyle):
    """The functional style on every local device: each takes its part of the batch, gradients and statistics are shared."""

    axis = AXIS
    norm = functools.partial(L.SyncBatchNorm, process_group=AXIS)

    def __init__(self, size: int, optimizer: optax.GradientTransformation, seed: int) -> None:
        super().__init__(size, optimizer, seed)
        # As the step returns them; else its second call would compile anew.
        everywhere = NamedSharding(jax.make_mesh((jax.local_device_count(),), (AXIS,)), PartitionSpec())
        self.params, self.buffers, self.opt_state = jax.device_put((self.params, self.buffers, self.opt_state), everywhere)

    @staticmethod
    def compile(update: Any) -> Any:
        return jax.pmap(update, axis_name=AXIS, in_axes=(None, None, None, 0, 0, 0), out_axes=None)

    def train(self, x: np.ndarray, y: np.ndarray) -> tuple[jax.Array, jax.Array]:
        n = jax.local_device_count()
        self.key, key = jax.random.split(self.key)
        parts = (a.reshape(n, len(a) // n, *a.shape[1:]) for a in (x, y))
        self.params, self.buffers, self.opt_state, loss, correct = self.run(
            self.params, self.buffers, self.opt_state, *parts, jax.random.split(key, n)
        )
        return loss, correct


STYLES = {"functional": FunctionalStyle, "module": ModuleStyle, "pmap": PmapStyle}


def batches(data: Digits, size: int, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One shuffled pass over the training set in batches of one size; what is left over is another pass's."""
    order = rng.permutation(len(data.train_labels))
    for start in range(0, len(order) - size + 1, size):
        index = order[start : start + size]
        yield data.train_images[index], data.train_labels[index]


def predictions(style: Any, images: np.ndarray, size: int = 500) -> np.ndarray:
    """The predicted digit of every image."""
    return np.concatenate([np.argmax(style.logits(images[i : i + size]), -1) for i in range(0, len(images), size)])


def train(style: Any, data: Digits, epochs: int, batch_size: int, seed: int) -> list[tuple[float, float, float]]:
    """Train with a progress bar; returns (loss, training accuracy, test accuracy) of each epoch."""
    rng, history = np.random.default_rng(seed), []
    per_epoch = len(data.train_labels) // batch_size
    with tqdm(total=epochs * per_epoch, unit="step") as bar:
        for epoch in range(epochs):
            seen = []
            for x, y in batches(data, batch_size, rng):
                seen.append(style.train(x, y))
                bar.update()
            loss, correct = np.mean([(float(a), float(b)) for a, b in seen], axis=0)
            test = float(np.mean(predictions(style, data.test_images) == data.test_labels))
            history.append((float(loss), float(correct), test))
            bar.set_postfix(epoch=epoch + 1, loss=f"{loss:.3f}", accuracy=f"{correct:.3f}", test=f"{test:.3f}")
    return history


def plot(history: list[tuple[float, float, float]], predicted: np.ndarray, labels: np.ndarray, out: pathlib.Path) -> None:
    """Write ``learning_curve.png`` and ``confusion_matrix.png``."""
    epochs = range(1, len(history) + 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot(epochs, [h[0] for h in history])
    left.set(xlabel="epoch", ylabel="training loss (nats)", yscale="log")
    right.plot(epochs, [100 * h[1] for h in history], label="training")
    right.plot(epochs, [100 * h[2] for h in history], label="test")
    right.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(80, 100.5))
    right.legend()
    figure.savefig(out / "learning_curve.png", dpi=120)

    matrix = np.zeros((10, 10), int)
    np.add.at(matrix, (labels, predicted), 1)
    figure, axes = plt.subplots(figsize=(6, 6), layout="constrained")
    axes.imshow(np.log1p(matrix), cmap="Blues")
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            axes.text(column, row, str(count), ha="center", va="center", color="white" if row == column else "black")
    axes.set(xlabel="predicted digit", ylabel="true digit", xticks=range(10), yticks=range(10))
    figure.savefig(out / "confusion_matrix.png", dpi=120)
    plt.close("all")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a convolutional network on handwritten digits.")
    parser.add_argument("--style", choices=STYLES, default="module")
    parser.add_argument("--data", metavar="DIR", help="a folder with MNIST's IDX files; without it scikit-learn's digits are used")
    parser.add_argument("--devices", type=int, help="how many CPU devices to pretend to have")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3, help="the largest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/digits"))
    options = parser.parse_args()
    if options.devices:
        jax.config.update("jax_num_cpu_devices", options.devices)
    try:
        data = mnist(options.data) if options.data else sklearn_digits()
    except DataError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    share = jax.local_device_count() if options.style == "pmap" else 1
    batch_size = min(options.batch_size, len(data.train_labels)) // share * share
    if batch_size < 1 or options.epochs < 1:
        parser.error(f"--batch-size must be at least {share}, one image for each device, and --epochs at least 1")

    steps = options.epochs * (len(data.train_labels) // batch_size)
    optimizer = optax.adamw(optax.cosine_onecycle_schedule(steps, options.lr))
    style = STYLES[options.style](data.train_images.shape[-1], optimizer, options.seed)
    history = train(style, data, options.epochs, batch_size, options.seed)

    options.out.mkdir(parents=True, exist_ok=True)
    np.savez(options.out / "weights.npz", **{name: np.asarray(v) for name, v in style.state().items()})
    reloaded = STYLES[options.style](data.train_images.shape[-1], optimizer, options.seed + 1)
    with np.load(options.out / "weights.npz") as weights:
        reloaded.load(dict(weights))
    predicted = predictions(reloaded, data.test_images)
    plot(history, predicted, data.test_labels, options.out)
    print(
        f"test accuracy {100 * np.mean(predicted == data.test_labels):.2f} % ({options.style} style, weights reloaded from {options.out})"
    )


if __name__ == "__main__":
    main()
