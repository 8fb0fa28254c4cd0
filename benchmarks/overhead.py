"""What a Module costs on the host at each compiled step, beside the same step on plain tuples of arrays.

    python benchmarks/overhead.py [--modules 160] [--repeats 300]

Both run the same compiled program of a network of small layers, interleaved; the difference of the medians is what
fingerprinting, splitting, dispatching and writing back cost.
"""

from __future__ import annotations

import argparse
import statistics
import time

import jax
import numpy as np

import jnn as nn
from jnn.core import rng
from jnn.module.program import Batch
from jnn.module.structure import structure, values
from jnn.module.training import Loss


def network(modules: int) -> nn.Sequential:
    """``modules`` modules: pairs of a linear layer and an activation."""
    return nn.Sequential(*(layer for _ in range(modules // 2) for layer in (nn.Linear(4, 4), nn.Tanh())))


def loss_fn(model: nn.Module, x: jax.Array) -> jax.Array:
    return model(x).sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modules", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=300)
    options = parser.parse_args()
    model, x = network(options.modules), np.ones((1, 4), np.float32)
    evaluate = nn.value_and_grad(loss_fn)

    now, batch = structure(model), Batch((x,))
    plain = jax.jit(jax.value_and_grad(Loss(loss_fn, model, batch, False), has_aux=True))
    arrays = values(now.params.values()), values(now.held.values())
    seed = rng.default_generator.state()

    def with_module() -> None:
        jax.block_until_ready(evaluate(model, x))

    def without() -> None:
        jax.block_until_ready(plain(*arrays, seed, batch.arrays))

    times: dict[str, list[float]] = {"module": [], "plain": [], "structure after an edit": []}
    for _ in range(20):
        with_module(), without()
    for _ in range(options.repeats):
        for name, run in (("module", with_module), ("plain", without)):
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    for _ in range(options.repeats):
        model.note = object()  # an edit: the structure is taken anew, and put back as it was
        del model.note
        start = time.perf_counter()
        structure(model)
        times["structure after an edit"].append(1e3 * (time.perf_counter() - start))
    for name, seen in times.items():
        low, middle, high = statistics.quantiles(seen, n=4)
        print(f"{name:>24}: {middle:.3f} ms (quartiles {low:.3f} to {high:.3f})")
    print(f"{'overhead of a step':>24}: {statistics.median(times['module']) - statistics.median(times['plain']):.3f} ms")


if __name__ == "__main__":
    main()
