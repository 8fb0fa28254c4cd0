"""Operations one by one: jnn against torch eager, torch.compile, hand-written JAX, equinox and flax, forward and with backward.

Writes ``benchmarks/results/ops.md``, ``.json`` and ``.png``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import torch
from operations import OPS, Below, Op

import jnn


def arrays_of(op: Op) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    made = [rng.integers(0, s.limit, s.shape) if isinstance(s, Below) else rng.standard_normal(s, np.float32) for s in op.shapes]
    # Weights of a size that keeps the outputs near 1.
    return [
        a / np.sqrt(max(1, np.prod(a.shape[1:]))).astype(a.dtype) if i and a.ndim > 1 and a.dtype == np.float32 else a
        for i, a in enumerate(made)
    ]


def cotangent(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def jax_forms(fn: Callable[..., Any], arrays: Sequence[np.ndarray], dtype: str) -> dict[str, Callable[[], Any]]:
    """Forward, and forward with the gradients of every float input for a fixed cotangent."""
    inputs = [jnp.asarray(a, dtype if a.dtype == np.float32 else None) for a in arrays]
    smooth = tuple(i for i, a in enumerate(arrays) if a.dtype == np.float32)
    forward = jax.jit(fn)
    slope = jnp.asarray(cotangent(forward(*inputs).shape), dtype)

    @jax.jit
    def both(slope: Any, *inputs: Any) -> Any:
        def of(*moving: Any) -> Any:
            full = list(inputs)
            for i, x in zip(smooth, moving, strict=True):
                full[i] = x
            return fn(*full)

        y, pull = jax.vjp(of, *(inputs[i] for i in smooth))
        return y, pull(slope)

    return {
        "forward": lambda: jax.block_until_ready(forward(*inputs)),
        "forward+backward": lambda: jax.block_until_ready(both(slope, *inputs)),
    }


def torch_forms(fn: Callable[..., Any], arrays: Sequence[np.ndarray], dtype: str) -> dict[str, Callable[[], Any]]:
    inputs = [harness.to_torch(a, dtype) for a in arrays]
    leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
    slope = harness.to_torch(cotangent(tuple(fn(*inputs).shape)), dtype)

    def forward() -> Any:
        with torch.no_grad():
            return harness.synchronized(fn(*inputs))

    def both() -> Any:
        y = fn(*leaves)
        return harness.synchronized((y, torch.autograd.grad(y, [x for x in leaves if x.requires_grad], slope)))

    return {"forward": forward, "forward+backward": both}


def measure(op: Op, options: argparse.Namespace) -> list[harness.Row]:
    arrays, dtype = arrays_of(op), options.dtype

    def on_torch(*a: Any) -> Any:
        return op.run(torch.nn.functional, *a)

    forms = {"jnn": jax_forms(lambda *a: op.run(jnn.functional, *a), arrays, dtype), "torch": torch_forms(on_torch, arrays, dtype)}
    if options.compile:
        forms["torch.compile"] = torch_forms(torch.compile(on_torch), arrays, dtype)
    if op.by_hand is not None:
        forms["JAX by hand"] = jax_forms(op.by_hand, arrays, dtype)
    for name, peer in op.peers.items():
        forms[name] = jax_forms(peer.run, peer.prepare(*arrays), dtype)
    if dtype == "float32":
        for name, form in forms.items():
            restore = op.peers[name].restore if name in op.peers else np.asarray
            expected = forms["torch"]["forward"]().cpu()
            np.testing.assert_allclose(restore(form["forward"]()), expected, rtol=5e-3, atol=5e-3, err_msg=f"{op.name}: {name}")
    return [
        harness.compare(op.name, kind, {name: form[kind] for name, form in forms.items()}, budget_s=options.budget)
        for kind in ("forward", "forward+backward")
    ]


def measured(ops: Sequence[Op], options: argparse.Namespace) -> list[harness.Row]:
    return [row for op in ops if re.search(options.only, op.name) for row in harness.shown(measure(op, options))]


def main() -> None:
    options = harness.arguments(__doc__, budget=1.0)
    harness.save("ops", "Operations", measured(OPS, options), options)


if __name__ == "__main__":
    main()
