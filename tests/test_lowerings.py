"""XLA's own lowerings, which are taken on accelerators, compute what those for a CPU do."""

from __future__ import annotations

import jax
import pytest

import jnn
from jnn.kernels.platform import lowering

from . import oracle
from .oracle import ids, quick_jit, rows

pytestmark = pytest.mark.usefixtures("quick_compilation")
FAMILIES = ("Conv", "LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm", "Transformer", "LazyConv")


CASES = [case for case in rows(test="native_lowering") if case.name.startswith(FAMILIES) and not case.random]


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_native_lowering_equals_the_one_for_a_cpu(case, key):
    module = oracle.module(case, train=True)
    params, buffers = jnn.split(module)
    floats, rebuild = oracle.split_floats(oracle.jax_inputs(case))

    def value_and_slopes(floats, params):
        def scalar(floats, params):
            args, call = rebuild(floats)
            out = jnn.pure(module).apply(params, buffers, *args, train=True, key=key, **call)[0]
            return sum((abs(o) ** 2).sum() for o in oracle.leaves(out) if oracle.is_float(o))

        return jax.value_and_grad(scalar, (0, 1))(floats, params)

    with lowering(native=False, library=False):
        expected = quick_jit(lambda *a: value_and_slopes(*a))(floats, params)
    with lowering(native=True):
        found = quick_jit(lambda *a: value_and_slopes(*a))(floats, params)
    oracle.assert_close(found, expected, 1e-9, 1e-9)
