"""Networks: inference and a training step (SGD with momentum), jnn against torch eager, torch.compile and obvious JAX.

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


def on_jnn(network: networks.Network, state: dict[str, np.ndarray], native: bool, dtype: str) -> dict[str, Callable[[], Any]]:
    def build() -> jnn.Module:
        model = network.build(jnn)
        model.load_state_dict(state)
        return model.to(jnp.dtype(dtype))

    x, y = (jnp.asarray(a, dtype if a.dtype == np.float32 else None) for a in (network.x, network.y))
    model, fixed = build(), build().eval()
    step = jnn.train_step(lambda model, x, y: loss_of(jnn.functional, model(x), y), jnn.optim.Optimizer(model, optax.sgd(1e-3, 0.9)))
    fixed.compile()

    def train() -> Any:
        with lowering(native=native):
            return jax.block_until_ready(step(x, y))

    def infer() -> Any:
        with lowering(native=native):
            return jax.block_until_ready(fixed(x))

    return {"inference": infer, "training step": train}


def on_torch(network: networks.Network, compiled: bool, dtype: str) -> tuple[dict[str, Callable[[], Any]], dict[str, np.ndarray]]:
    model, fixed = network.build(torch.nn), network.build(torch.nn).eval()
    state = {name: value.cpu().numpy().copy() for name, value in model.state_dict().items()}
    fixed.load_state_dict(model.state_dict())
    model, fixed = (net.to(getattr(torch, dtype)) for net in (model, fixed))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    x, y = (harness.to_torch(a, dtype) for a in (network.x, network.y))
    forward, evaluate = (torch.compile(model), torch.compile(fixed)) if compiled else (model, fixed)

    def train() -> Any:
        optimizer.zero_grad()
        loss = loss_of(torch.nn.functional, forward(x), y)
        loss.backward()
        optimizer.step()
        return harness.synchronized(loss.detach())

    def infer() -> Any:
        with torch.no_grad():
            return harness.synchronized(evaluate(x))

    return {"inference": infer, "training step": train}, state


def measure(name: str, network: networks.Network, options: argparse.Namespace) -> list[harness.Row]:
    torch.manual_seed(0)
    eager, state = on_torch(network, False, options.dtype)
    forms = {"jnn": on_jnn(network, state, False, options.dtype), "torch": eager}
    if options.compile:
        forms["torch.compile"] = on_torch(network, True, options.dtype)[0]
    forms["obvious JAX"] = on_jnn(network, state, True, options.dtype)
    if options.dtype == "float32":
        np.testing.assert_allclose(forms["jnn"]["inference"](), eager["inference"]().cpu(), rtol=1e-3, atol=1e-3, err_msg=name)
    return [harness.compare(name, kind, {k: v[kind] for k, v in forms.items()}, budget_s=options.budget) for kind in eager]


def main() -> None:
    options = harness.arguments(__doc__, budget=4.0)
    found = [(name, network) for name, network in networks.networks().items() if re.search(options.only, name)]
    rows = [row for name, network in found for row in harness.shown(measure(name, network, options))]
    harness.save("models", "Networks", rows, options)


if __name__ == "__main__":
    main()
