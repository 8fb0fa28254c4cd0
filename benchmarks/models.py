"""Whole networks: a training step (SGD with momentum) and inference, jnn against torch eager, torch.compile and XLA's own lowerings.

    python benchmarks/models.py [--only REGEX] [--budget SECONDS] [--compile]

"obvious JAX" is the same network with every operation lowered as one would write it by hand. Writes
``benchmarks/results/models.md``, ``.json`` and ``.png``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import torch

import jnn
from jnn.kernels.platform import lowering


def loss_of(F: Any, out: Any, y: Any) -> Any:
    """Cross entropy by class indices, with the classes last or second; else the squared error."""
    if out.shape == y.shape:
        return F.mse_loss(out, y)
    return F.cross_entropy(out.reshape(-1, out.shape[-1]) if out.ndim == 3 else out, y.reshape(-1) if out.ndim == 3 else y)


def on_jnn(network: networks.Network, state: dict[str, np.ndarray], native: bool) -> dict[str, Callable[[], Any]]:
    model = network.build(jnn)
    model.load_state_dict(state)
    step = jnn.train_step(lambda model, x, y: loss_of(jnn.functional, model(x), y), jnn.optim.Optimizer(model, optax.sgd(1e-3, 0.9)))
    x, y = jnp.asarray(network.x), jnp.asarray(network.y)

    def train() -> Any:
        model.train()
        with lowering(native=native):
            return jax.block_until_ready(step(x, y))

    fixed = network.build(jnn).eval()
    fixed.load_state_dict(state)
    fixed.compile()

    def infer() -> Any:
        with lowering(native=native):
            return jax.block_until_ready(fixed(x))

    return {"inference": infer, "training step": train}


def on_torch(network: networks.Network, compiled: bool) -> tuple[dict[str, Callable[[], Any]], dict[str, np.ndarray]]:
    model, fixed = network.build(torch.nn), network.build(torch.nn).eval()
    state = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    fixed.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    x, y = torch.from_numpy(network.x), torch.from_numpy(network.y)
    forward, evaluate = (torch.compile(model), torch.compile(fixed)) if compiled else (model, fixed)

    def train() -> Any:
        optimizer.zero_grad()
        loss = loss_of(torch.nn.functional, forward(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def infer() -> Any:
        with torch.no_grad():
            return evaluate(x)

    return {"inference": infer, "training step": train}, state


def measure(name: str, network: networks.Network, budget: float, compiled: bool) -> list[harness.Row]:
    torch.manual_seed(0)
    eager, state = on_torch(network, False)
    forms = {"jnn": on_jnn(network, state, native=False), "torch": eager, "obvious JAX": on_jnn(network, state, native=True)}
    if compiled:
        forms["torch.compile"] = on_torch(network, True)[0]
    np.testing.assert_allclose(forms["jnn"]["inference"](), eager["inference"](), rtol=1e-3, atol=1e-3, err_msg=name)
    return [harness.compare(name, kind, {k: v[kind] for k, v in forms.items()}, budget_s=budget) for kind in eager]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a regular expression that names match")
    parser.add_argument("--budget", type=float, default=4.0, help="seconds for each row")
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    rows = []
    for name, network in networks.networks().items():
        if re.search(options.only, name):
            for row in measure(name, network, options.budget, options.compile):
                rows.append(row)
                print(f"{row.name:22} {row.kind:14}", *(f"{k} {v}" for k, v in row.ratios.items()), sep="  ", flush=True)
    if not options.no_save:
        harness.save("models", "Networks", rows)


if __name__ == "__main__":
    main()
