"""How long a training step takes to trace and compile, by the number of layers or steps: ratios that should not grow.

python benchmarks/compile.py
"""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np

import jnn
from jnn import layers as L


def seconds(make):
    """The fastest of three fresh builds of a compiled function, its arguments made outside the clock."""

    def once():
        fn, args = make()
        jax.clear_caches()
        start = time.perf_counter()
        jax.jit(fn).lower(*args).compile()
        return time.perf_counter() - start

    return min(once() for _ in range(3))


def encoder(depth, scan=None, d=64):
    """A step of gradient descent on an encoder of ``depth`` layers, on the pure face."""
    net = L.TransformerEncoder(L.TransformerEncoderLayer(d, 4, 4 * d, batch_first=True), depth, scan=scan)
    params, buffers = net.init(jax.random.key(0))
    x = jnp.ones((2, 16, d))

    def step(params, x, key):
        def loss(params):
            return (net.apply(params, buffers, x, train=True, key=key)[0] ** 2).mean()

        value, grads = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

    return step, (params, x, jax.random.key(1))


def encoder_module(depth, scan=None, d=64):
    """The same on the stateful face."""
    net = jnn.TransformerEncoder(jnn.TransformerEncoderLayer(d, 4, 4 * d, batch_first=True), depth, scan=scan)
    params, buffers = jnn.split(net)
    pure, x = jnn.pure(net), jnp.ones((2, 16, d))

    def step(params, x, key):
        def loss(params):
            return (pure.apply(params, buffers, x, train=True, key=key)[0] ** 2).mean()

        value, grads = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

    return step, (params, x, jax.random.key(1))


def lstm(steps):
    """A gradient through an LSTM over ``steps`` steps."""
    net = L.LSTM(32, 64)
    params, _ = net.init(jax.random.key(0))
    return jax.grad(lambda p, x: (net.apply(p, {}, x)[0][0] ** 2).mean()), (params, np.zeros((steps, 4, 32), np.float32))


def main():
    jax.config.update("jax_enable_compilation_cache", False)
    for name, build in (("pure encoder", encoder), ("encoder module", encoder_module)):
        few, many = seconds(lambda b=build: b(4)), seconds(lambda b=build: b(48))
        print(f"{name}: 4 layers {few:.2f} s, 48 layers {many:.2f} s, ratio {many / few:.2f}")
    few, many = seconds(lambda: lstm(20)), seconds(lambda: lstm(2000))
    print(f"LSTM: 20 steps {few:.2f} s, 2000 steps {many:.2f} s, ratio {many / few:.2f}")


if __name__ == "__main__":
    main()
