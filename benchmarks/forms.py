"""Convolutions drawn at random in every form of the library, against the form that it chooses.

    python benchmarks/forms.py [--seed N] [--count N] [--only REGEX] [--worse PERCENT]

``csrc/costs.h`` is fitted to such figures. A row gives a pass by its microseconds in the chosen form and in each other that is faster;
``--only`` matches names, as in ``--only by_weight``. Rows are printed where the best form takes so many percent less or more.
"""

from __future__ import annotations

import math
import random
import re
import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import harness
import jax
import jax.numpy as jnp
import numpy as np

from jnn.kernels import convolution
from jnn.kernels.convolution import LIBRARY_FORMS
from jnn.kernels.taps import Geometry

# A call has no more products of a multiplication and a sum, and no array more numbers.
_PRODUCTS, _NUMBERS, _WEIGHTS = 2**27, 2**21, 2**22
_LEAST_PRODUCTS = 2**16
# Rounds of samples of so many seconds: forms that take much longer than another are timed once.
_ROUNDS, _SAMPLE_S = 7, 0.003


class Drawn(NamedTuple):
    """A convolution: its arrays' shapes and its geometry."""

    x: tuple[int, ...]
    w: tuple[int, ...]
    y: tuple[int, ...]
    geometry: Geometry

    def __str__(self) -> str:
        stride, ((padding, _), *_), dilation, groups = self.geometry
        sizes = f"{'x'.join(map(str, self.x))}, kernel {'x'.join(map(str, self.w))}"
        return f"{sizes} stride {stride[0]} padding {padding} dilation {dilation[0]} groups {groups}"


def drawn(rng: random.Random) -> Drawn:
    """One whose passes take from a few microseconds to some milliseconds."""

    def size(low: int, high: int) -> int:
        return int(math.exp(rng.uniform(math.log(low), math.log(high + 1))))

    while True:
        dims, n, c = rng.choice([1, 2, 2, 2, 3]), size(1, 16), size(1, 512)
        groups = rng.choice([1, 1, 1, 1, c, *(g for g in (2, 4, 8, 32) if c % g == 0)])
        o, kernel = groups * size(1, max(1, 512 // groups)), (rng.choice([1, 2, 3, 3, 4, 5, 7]),) * dims
        x, w = (n, c, *[size(1, {1: 512, 2: 64, 3: 16}[dims])] * dims), (o, c // groups, *kernel)
        padding = rng.choice([0, kernel[0] // 2])
        geometry = Geometry(
            (rng.choice([1, 1, 1, 2, kernel[0]]),) * dims, ((padding, padding),) * dims, (rng.choice([1, 1, 1, 2]),) * dims, groups
        )
        y = (n, o, *geometry.sizes(x[2:], kernel))
        small = max(math.prod(x), math.prod(y)) <= _NUMBERS and math.prod(w) <= _WEIGHTS
        if min(y) > 0 and small and _LEAST_PRODUCTS <= math.prod(y) * math.prod(w[1:]) <= _PRODUCTS:
            return Drawn(x, w, y, geometry)


def passes(case: Drawn) -> Iterator[tuple[str, Callable[..., Any], tuple[Any, ...]]]:
    """Of a convolution: the name of each pass, what computes it and its arrays."""
    rng = np.random.default_rng(0)
    x, w, g = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in case[:3])

    def conv(x: jax.Array, w: jax.Array) -> jax.Array:
        return convolution.conv(x, w, **case.geometry._asdict())

    yield "forward", conv, (x, w)
    yield "by_input", lambda g, x, w: jax.vjp(lambda x: conv(x, w), x)[1](g), (g, x, w)
    yield "by_weight", lambda g, x, w: jax.vjp(lambda w: conv(x, w), w)[1](g), (g, x, w)


def microseconds(run: Callable[..., Any], arrays: tuple[Any, ...]) -> dict[str, float]:
    """Of a call in each form."""
    calls = {}
    for form in LIBRARY_FORMS:
        convolution.LIBRARY_FORM = form
        calls[form] = jax.jit(lambda *arrays: run(*arrays)).lower(*arrays).compile()
        jax.clear_caches()
    convolution.LIBRARY_FORM = ""
    forms = {form: lambda call=call: jax.block_until_ready(call(*arrays)) for form, call in calls.items()}
    samples = harness.in_turns(forms, 0, _ROUNDS, sample_s=_SAMPLE_S, untimed_s=0)
    return {form: 1e6 * statistics.median(seen) for form, seen in samples.items()}


def main() -> None:
    options = harness.arguments(__doc__, 0, seed=0, count=100, worse=30)
    rng = random.Random(options.seed)
    ratios: dict[str, list[float]] = {}
    for _ in range(options.count):
        case = drawn(rng)
        for kind, run, arrays in passes(case):
            name = f"{kind} {case}"
            if not re.search(options.only, name):
                continue
            taken = microseconds(run, arrays)
            chosen = taken.pop("")
            ratios.setdefault(kind, []).append(chosen / min(taken.values()))
            if ratios[kind][-1] > 1 + options.worse / 100:
                better = sorted((t, form) for form, t in taken.items() if t < chosen)
                print(f"{name}: {chosen:.0f} chosen", *(f"{t:.0f} {form}" for t, form in better), sep=", ", flush=True)
    for kind, found in ratios.items():
        print(f"{kind}: chosen over best {harness.geometric_mean(found):.3f}, worst {max(found):.2f} of {len(found)}")


if __name__ == "__main__":
    main()
