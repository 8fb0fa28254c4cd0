"""The training run that the tests of parallel training repeat on one device, on many, and in several processes."""

from __future__ import annotations

import jax
import numpy as np
import optax

import jnn as nn
import jnn.functional as F

STEPS, ROWS = 20, 8
RATE, MOMENTUM = 0.05, 0.9


def batches(steps: int = STEPS, rows: int = ROWS) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images and labels of each step."""
    rng = np.random.default_rng(0)
    return [(rng.standard_normal((rows, 1, 6, 6)).astype(np.float32), rng.integers(0, 3, rows).astype(np.int32)) for _ in range(steps)]


def model(norm: type) -> nn.Sequential:
    """A small convolutional network with a normalisation, the same at each call."""
    nn.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def loss_fn(model: nn.Module, x: jax.Array, y: jax.Array) -> jax.Array:
    return F.cross_entropy(model(x), y)


def optimizer(model: nn.Module) -> nn.optim.Optimizer:
    return nn.optim.Optimizer(model, optax.sgd(RATE, MOMENTUM))


def run(step, model: nn.Module, data) -> dict[str, np.ndarray]:
    """The losses of all steps, and the parameters and buffers after them."""
    losses = [np.asarray(step(*batch)) for batch in data]
    return {"losses": np.array(losses)} | {name: np.asarray(value) for name, value in model.state_dict().items()}


def assert_same(got: dict[str, np.ndarray], expected: dict[str, np.ndarray], rtol: float = 1e-5) -> None:
    """Equal to ``rtol``, relative to the largest value of each array."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=rtol, atol=rtol * np.abs(value).max(initial=0), err_msg=name)
