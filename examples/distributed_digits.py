"""Train the network of digits.py on several devices: in one process, in several, and on a mesh. It resumes where it was.

    python examples/distributed_digits.py --style data-parallel --devices 4
    python examples/distributed_digits.py --style mesh --devices 4
    python -m jnn.parallel.launch --nproc 2 --cpu-devices 2 examples/distributed_digits.py --style processes

All three train the same model: batch normalisation is synchronised, and every epoch's last, smaller batch is there. A
checkpoint is written after each epoch. To see a run survive, let its last process kill itself in the middle of a step, and
start it again:

    python -m jnn.parallel.launch --nproc 2 --cpu-devices 1 examples/distributed_digits.py --style processes --die-at 60
    python -m jnn.parallel.launch --nproc 2 --cpu-devices 1 examples/distributed_digits.py --style processes
"""

from __future__ import annotations

import argparse
import os
import pathlib
import signal
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax
from digits import Net
from digits_data import Digits, sklearn_digits
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import jnn as nn
import jnn.functional as F
import jnn.io
from jnn import parallel


def loss_fn(model: nn.Module, x: jax.Array, y: jax.Array) -> jax.Array:
    return F.cross_entropy(model(x), y)


class DataParallelStyle:
    """One process: the module splits the batch that it is given over all devices."""

    def __init__(self, model: nn.Module, transform: optax.GradientTransformation) -> None:
        self.optimizer = nn.optim.Optimizer(nn.DataParallel(model), transform)
        self.step = nn.train_step(loss_fn, self.optimizer)

    def arrange(self, model: nn.Module) -> None:
        """Nothing: it is copied to the devices at each call."""

    def place(self, batch: Any) -> Any:
        return batch


class ProcessesStyle:
    """Any number of processes: each device computes the gradients of its rows, which are averaged."""

    mapping = "shard_map"

    def __init__(self, model: nn.Module, transform: optax.GradientTransformation) -> None:
        self.mesh = self.arrange(model)
        self.optimizer = nn.optim.Optimizer(model, transform)
        self.step = parallel.train_step(loss_fn, self.optimizer, mesh=self.mesh, mapping=self.mapping)

    def arrange(self, model: nn.Module) -> Mesh:
        """The devices, with the model's values on them."""
        return Mesh(np.array(jax.devices()), ("data",))

    def place(self, batch: Any) -> Any:
        return parallel.shard_batch(batch, self.mesh)


class MeshStyle(ProcessesStyle):
    """A mesh of two rows: batches are spread over one axis, the large layer's parameters over the other."""

    mapping = "jit"

    def arrange(self, model: nn.Module) -> Mesh:
        mesh = Mesh(np.array(jax.devices()).reshape(2, -1), ("data", "model"))
        parallel.shard(model, mesh, {"hidden.weight": P("model", None), "hidden.bias": P("model"), "output.weight": P(None, "model")})
        return mesh


STYLES = {"data-parallel": DataParallelStyle, "processes": ProcessesStyle, "mesh": MeshStyle}


def batches(data: Digits, size: int, epoch: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One shuffled pass over the training set, the same in all processes; the last batch is what is left."""
    order = np.random.default_rng([seed, epoch]).permutation(len(data.train_labels))
    for start in range(0, len(order), size):
        index = order[start : start + size]
        yield data.train_images[index], data.train_labels[index]


def accuracy(model: nn.Module, data: Digits) -> float:
    """The share of test images that are told right, in per cent."""
    predicted = np.argmax(model.eval()(data.test_images), -1)
    model.train()
    return 100 * float(np.mean(predicted == data.test_labels))


def state_of(model: nn.Module, optimizer: nn.optim.Optimizer) -> dict[str, Any]:
    """Numpy arrays, which every process may write and read."""
    return {"model": {name: np.asarray(value) for name, value in model.state_dict().items()}, "optimizer": optimizer.state_dict()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a convolutional network on handwritten digits, on several devices.")
    parser.add_argument("--style", choices=STYLES, default="processes")
    parser.add_argument("--devices", type=int, help="how many CPU devices to pretend to have")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=64, help="rows of all devices together")
    parser.add_argument("--images", type=int, help="train on the first so many only")
    parser.add_argument("--lr", type=float, default=2e-3, help="the largest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("outputs/distributed_digits"))
    parser.add_argument("--die-at", type=int, metavar="STEP", help="kill the last process in the middle of this step")
    options = parser.parse_args()
    if options.devices:
        jax.config.update("jax_num_cpu_devices", options.devices)
    parallel.initialize()
    several, first = jax.process_count() > 1, jax.process_index() == 0
    if several and options.style == "data-parallel":
        parser.error("--style data-parallel is for one process")

    data = sklearn_digits()
    data = data._replace(train_images=data.train_images[: options.images], train_labels=data.train_labels[: options.images])
    per_epoch = -(-len(data.train_labels) // options.batch_size)
    nn.manual_seed(options.seed)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(Net(data.train_images.shape[-1]))
    transform = optax.adamw(optax.cosine_onecycle_schedule(options.epochs * per_epoch, options.lr))
    style = STYLES[options.style](model, transform)

    with jnn.io.Checkpointer(options.out / "checkpoints", keep=2) as checkpointer:
        done = checkpointer.latest or 0
        if done:
            _, state = checkpointer.restore(state_of(model, style.optimizer))
            model.load_state_dict(state["model"])
            style.arrange(model)
            style.optimizer.load_state_dict(state["optimizer"])
            if first:
                print(f"resumed after epoch {done}")
        for epoch in range(done, options.epochs):
            nn.manual_seed(options.seed + epoch)  # an epoch is the same whether or not the run was resumed before it
            losses = []
            for i, batch in enumerate(batches(data, options.batch_size, epoch, options.seed)):
                losses.append(style.step(*style.place(batch)))
                if epoch * per_epoch + i == options.die_at and jax.process_index() == jax.process_count() - 1:
                    os.kill(os.getpid(), signal.SIGKILL)
            checkpointer.save(epoch + 1, state_of(model, style.optimizer))
            if first:
                print(f"epoch {epoch + 1}: loss {np.mean(losses):.4f}, test accuracy {accuracy(model, data):.2f} %", flush=True)
    if first:
        np.savez(options.out / "weights.npz", **state_of(model, style.optimizer)["model"])
        print(f"test accuracy {accuracy(model, data):.2f} % ({options.style} style, {jax.device_count()} devices)")


if __name__ == "__main__":
    main()
