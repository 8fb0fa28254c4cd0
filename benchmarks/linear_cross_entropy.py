"""Linear cross entropy: peak memory and time of one training step, against the plain form that holds all logits.

    python benchmarks/linear_cross_entropy.py [tokens features classes]

Each form runs in a process of its own. Its peak is that of the process (``ru_maxrss``) above what was resident after inputs,
weights and arrays of the gradients' sizes were made. Times are medians, taken in turns.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time

SIZES = (4096, 512, 65536)


def measure(form: str, tokens: int, features: int, classes: int, repeats: int) -> dict[str, float]:
    """One process: warm up, then time steps and read the peak."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import jnn.functional as F

    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((tokens, features)), jnp.float32)
    w = jnp.asarray(rng.standard_normal((classes, features), np.float32) * features**-0.5)
    t = jnp.asarray(rng.integers(0, classes, tokens))

    def plain(x, w):
        return F.cross_entropy(F.linear(x, w), t)

    def chunked(x, w):
        return F.linear_cross_entropy(x, w, t)

    step = jax.jit(jax.value_and_grad({"plain": plain, "chunked": chunked}[form], (0, 1))).lower(x, w).compile()
    held = [jnp.ones_like(x), jnp.ones_like(w)]
    jax.block_until_ready((x, w, t, held))
    with open("/proc/self/statm") as file:
        before = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    del held
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        loss = jax.block_until_ready(step(x, w))[0]
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"loss": float(loss), "seconds": statistics.median(times), "above_mib": (peak - before) / 2**20}


def main() -> None:
    sizes = tuple(map(int, sys.argv[1:4])) or SIZES
    runs: dict[str, list[dict[str, float]]] = {"plain": [], "chunked": []}
    for _ in range(3):
        for form, results in runs.items():
            out = subprocess.run(
                [sys.executable, __file__, "--child", form, *map(str, sizes)], stdout=subprocess.PIPE, check=True, text=True
            )
            results.append(json.loads(out.stdout.splitlines()[-1]))
    print(f"{4 * sizes[0] * sizes[2] / 2**20:.0f} MiB of logits; peaks are above inputs, weights and gradients")
    median = {form: {k: statistics.median(r[k] for r in results) for k in results[0]} for form, results in runs.items()}
    for form, found in median.items():
        print(f"{form:8} loss {found['loss']:.6f}  step {found['seconds']:6.2f} s  peak {found['above_mib']:6.0f} MiB")
    print(f"time ratio {median['chunked']['seconds'] / median['plain']['seconds']:.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(measure(sys.argv[2], *map(int, sys.argv[3:6]), repeats=2)))
    else:
        main()
