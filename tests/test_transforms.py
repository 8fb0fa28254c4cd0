"""Every row under JAX's transformations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jnn

from . import oracle
from .oracle import ids, quick_jit, rows

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Runner:
    """A row as a function of its float inputs and parameters."""

    def __init__(self, case, key):
        self.module = oracle.module(case, train=not case.random)
        self.params, self.buffers = jnn.split(self.module)
        self.floats, self._rebuild = oracle.split_floats(oracle.jax_inputs(case))
        self._train, self._key = not case.random, key

    def __call__(self, floats, params):
        args, call = self._rebuild(floats)
        return jnn.pure(self.module).apply(params, self.buffers, *args, train=self._train, key=self._key, **call)

    def scalar(self, floats, params):
        """A smooth function of all outputs whose second derivative is not trivial."""
        outs = [o for o in oracle.leaves(self(floats, params)[0]) if oracle.is_float(o)]
        return sum(jnp.sum(jnp.abs(o) * jnp.cos(jnp.real(o))) for o in outs)

    def direction(self, seed):
        rng = np.random.default_rng(seed)
        return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), (self.floats, self.params))


def dot(a, b):
    return sum(jnp.sum(x * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("case", rows(test="jit"), ids=ids)
def test_jit_equals_eager_and_does_not_retrace(case, key):
    run = Runner(case, key)
    traces = []

    def counted(floats, params):
        traces.append(1)
        return run(floats, params)

    jitted = quick_jit(counted)
    first = jitted(run.floats, run.params)
    oracle.assert_close(first, run(run.floats, run.params), 1e-9, 1e-11)
    jitted(run.floats, run.params)
    assert len(traces) == 1


@pytest.mark.parametrize("case", rows(test="vmap"), ids=ids)
def test_vmap_equals_a_loop(case, key):
    run = Runner(case, key)
    scaled = jax.tree.map(lambda x: jnp.stack([x, x * 0.75]), run.floats)
    batched = quick_jit(jax.vmap(run, in_axes=(0, None), axis_size=2))(scaled, run.params)
    one = quick_jit(run)
    single = [one(jax.tree.map(lambda x, i=i: x[i], scaled), run.params) for i in range(2)]
    oracle.assert_close(batched, jax.tree.map(lambda *xs: jnp.stack(xs), *single), 1e-9, 1e-10)


@pytest.mark.parametrize("case", rows(test="jvp"), ids=ids)
def test_forward_mode_equals_reverse_mode(case, key):
    run = Runner(case, key)
    tangent = run.direction(0)
    both = quick_jit(lambda *at: (jax.jvp(run.scalar, at, tangent)[1], jax.grad(run.scalar, argnums=(0, 1))(*at)))
    forward, reverse = both(run.floats, run.params)
    np.testing.assert_allclose(forward, dot(reverse, tangent), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("case", rows(test="second_order"), ids=ids)
def test_second_order_forward_over_reverse_equals_reverse_over_reverse(case, key):
    run = Runner(case, key)
    tangent = run.direction(1)
    grad = jax.grad(run.scalar, argnums=(0, 1))
    of_dot = jax.grad(lambda f, p: dot(grad(f, p), tangent), argnums=(0, 1))
    forward, reverse = quick_jit(lambda *at: (jax.jvp(grad, at, tangent)[1], of_dot(*at)))(run.floats, run.params)
    oracle.assert_close(jax.tree.leaves(forward), jax.tree.leaves(reverse), 1e-6, 1e-8)


@pytest.mark.parametrize("case", rows(test="scan"), ids=ids)
def test_scan_and_remat_equal_plain(case, key):
    run = Runner(case, key)

    def scanned(floats, params):
        body = jax.checkpoint(lambda carry, _: (carry + run.scalar(floats, params), None))
        return jax.lax.scan(body, jnp.zeros(()), None, length=2)[0] / 2

    plain, looped = (jax.grad(f, argnums=(0, 1)) for f in (run.scalar, scanned))
    expected, got = quick_jit(lambda *at: (plain(*at), looped(*at)))(run.floats, run.params)
    oracle.assert_close(jax.tree.leaves(got), jax.tree.leaves(expected), 1e-7, 1e-9)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("case", rows(test="half"), ids=ids)
def test_half_types_keep_their_dtype_and_precision(case, dtype, key):
    """Against float64 on the same rounded numbers, within a few units of the dtype's precision times the largest output."""
    half, full = oracle.module(case, train=False, dtype=dtype), oracle.module(case, train=False)
    full.load_state_dict({k: np.asarray(v, np.float64 if oracle.is_float(v) else None) for k, v in half.state_dict().items()})
    floats, rebuild = oracle.split_floats(oracle.jax_inputs(case, dtype))
    args, call = rebuild(floats)
    out = half(*args, **call)
    args, call = rebuild([x.astype(np.float64) for x in floats])
    exact = full(*args, **call)
    for mine, right in zip(oracle.leaves(out), oracle.leaves(exact), strict=True):
        if not oracle.is_float(right):
            continue
        assert mine.dtype == dtype
        right = np.asarray(right)
        finite = np.isfinite(right)
        scale = 1 + np.max(np.abs(right[finite]), initial=0.0)
        np.testing.assert_allclose(
            np.asarray(mine, np.float64)[finite], right[finite], rtol=0, atol=16 * float(jnp.finfo(dtype).eps) * scale
        )
