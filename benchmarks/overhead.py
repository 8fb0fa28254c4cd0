"""What the host does around a call: small modules called eagerly against torch eager, and a Module's step against plain arrays.

Writes ``benchmarks/results/overhead.md``, ``.json`` and ``.png``. The networks compute next to nothing, so that the time is
that of dispatching; for a compiled step also of fingerprinting, splitting and writing back.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import torch

import jnn
from jnn.core import rng
from jnn.module.program import Batch
from jnn.module.structure import structure, values
from jnn.module.training import Loss

MODULES = 160


def deep(nn: Any) -> Any:
    """Pairs of a linear layer and an activation."""
    return nn.Sequential(*(layer for _ in range(MODULES // 2) for layer in (nn.Linear(4, 4), nn.Tanh())))


SMALL: dict[str, tuple[Callable[[Any], Any], tuple[int, ...]]] = {
    "Linear": (lambda nn: nn.Linear(4, 4), (1, 4)),
    "Conv2d": (lambda nn: nn.Conv2d(3, 4, 3), (1, 3, 8, 8)),
    "BatchNorm2d": (lambda nn: nn.BatchNorm2d(3), (2, 3, 4, 4)),
    "LSTM": (lambda nn: nn.LSTM(4, 4), (5, 2, 4)),
    "TransformerEncoderLayer": (lambda nn: nn.TransformerEncoderLayer(8, 2, 16, 0.0), (5, 2, 8)),
    f"{MODULES} modules": (deep, (1, 4)),
}


def eager(build: Callable[[Any], Any], shape: tuple[int, ...]) -> dict[str, Callable[[], Any]]:
    ours, compiled, theirs = build(jnn), build(jnn), build(torch.nn)
    compiled.compile()
    x, t = jnp.ones(shape), torch.ones(shape)

    def on_torch() -> Any:
        with torch.no_grad():
            return harness.synchronized(theirs(t))

    return {
        "jnn": lambda: jax.block_until_ready(ours(x)),
        "torch": on_torch,
        "jnn, compiled": lambda: jax.block_until_ready(compiled(x)),
    }


def step() -> dict[str, Callable[[], Any]]:
    """One program, with a Module's state put in and taken out, and on arrays alone."""
    model, x = deep(jnn), np.ones((1, 4), np.float32)

    def loss_fn(model: Any, x: Any) -> Any:
        return model(x).sum()

    evaluate = jnn.value_and_grad(loss_fn)
    now, batch = structure(model), Batch((x,))
    plain = jax.jit(jax.value_and_grad(Loss(loss_fn, model, batch, False), has_aux=True))
    arrays = values(now.params.values()), values(now.held.values())
    seed = rng.default_generator.state()
    return {
        "jnn": lambda: jax.block_until_ready(evaluate(model, x)),
        "plain arrays": lambda: jax.block_until_ready(plain(*arrays, seed, batch.arrays)),
    }


def main() -> None:
    options = harness.arguments(__doc__, budget=1.0)
    found = {(name, "eager call"): (lambda case=case: eager(*case)) for name, case in SMALL.items()}
    found[f"{MODULES} modules", "value and gradient"] = step
    rows = [
        row
        for (name, kind), make in found.items()
        if re.search(options.only, name)
        for row in harness.shown([harness.compare(name, kind, make(), budget_s=options.budget)])
    ]
    harness.save("overhead", "Overhead of calls", rows, options)


if __name__ == "__main__":
    main()
