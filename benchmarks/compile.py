"""Tracing, lowering and compiling a training step: jnn against obvious JAX, and against fewer layers or steps.

Writes ``benchmarks/results/compile.md``, ``.json`` and ``.png``. The last two kinds of ratio should not grow with depth or length.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import models
import networks
import numpy as np

import jnn
from jnn import layers as L
from jnn.kernels.platform import lowering

Made = tuple[Callable[..., Any], tuple[Any, ...]]


def fresh(make: Callable[..., Made], size: Any, native: bool = False) -> Callable[[], Any]:
    """Compile what ``make(size)`` gives, a function and its arguments, as if for the first time."""
    fn, args = make(size)

    def compile_() -> Any:
        jax.clear_caches()
        with lowering(native=native):
            return jax.jit(lambda *a: fn(*a)).lower(*args).compile()

    return compile_


def _descent(loss: Callable[..., Any], params: Any, *args: Any) -> Made:
    def step(params: Any, *args: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, *args)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

    return step, (params, *args)


def network(name: str) -> Made:
    """A step of one of the networks of ``networks.py``."""
    build, x, y = networks.networks()[name]
    model = build(jnn)
    params, buffers = jnn.split(model)
    pure = jnn.pure(model)

    def loss(params: Any, x: Any, y: Any, key: Any) -> Any:
        out, new = pure.apply(params, buffers, x, train=True, key=key)
        return models.loss_of(jnn.functional, out, y) + 0 * sum(v.sum() for v in jax.tree.leaves(new))

    return _descent(loss, params, jnp.asarray(x), jnp.asarray(y), jax.random.key(1))


def encoder(depth: int, size: int = 64) -> Made:
    """An encoder of ``depth`` layers on the pure face."""
    net = L.TransformerEncoder(L.TransformerEncoderLayer(size, 4, 4 * size, batch_first=True), depth)
    params, buffers = net.init(jax.random.key(0))
    return _encoder(net, params, buffers, size)


def encoder_module(depth: int, size: int = 64) -> Made:
    """The same on the stateful face."""
    net = jnn.TransformerEncoder(jnn.TransformerEncoderLayer(size, 4, 4 * size, batch_first=True), depth)
    return _encoder(jnn.pure(net), *jnn.split(net), size)


def _encoder(net: Any, params: Any, buffers: Any, size: int) -> Made:
    def loss(params: Any, x: Any, key: Any) -> Any:
        return (net.apply(params, buffers, x, train=True, key=key)[0] ** 2).mean()

    return _descent(loss, params, jnp.ones((2, 16, size)), jax.random.key(1))


def lstm(steps: int) -> Made:
    net = L.LSTM(32, 64)
    params, _ = net.init(jax.random.key(0))
    return _descent(lambda p, x: (net.apply(p, {}, x)[0][0] ** 2).mean(), params, np.zeros((steps, 4, 32), np.float32))


def forms() -> dict[str, dict[str, Callable[[], Any]]]:
    """By row the thing that is compiled and what it is compared with."""
    found = {
        f"{name} training step": {"jnn": fresh(network, name), "obvious JAX": fresh(network, name, native=True)}
        for name in ("ResNet-18", "MobileNetV2", "Transformer encoder")
    }
    for title, build in (("encoder", encoder), ("encoder module", encoder_module)):
        found[f"{title}, 48 layers"] = {"jnn": fresh(build, 48), "4 layers": fresh(build, 4)}
    found["LSTM, 2,000 steps"] = {"jnn": fresh(lstm, 2000), "20 steps": fresh(lstm, 20)}
    return found


def main() -> None:
    options = harness.arguments(__doc__, budget=1.0)
    jax.config.update("jax_enable_compilation_cache", False)
    found = ((name, pair) for name, pair in forms().items() if re.search(options.only, name))
    rows = [row for name, pair in found for row in harness.shown([harness.compare(name, "compile", pair, budget_s=options.budget)])]
    harness.save("compile", "Compiling a training step", rows, options)


if __name__ == "__main__":
    main()
