"""Attention by jnn's library for CPUs: every form of it is what it is defined as, in every derivative."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jnn.functional as F
from jnn.kernels import attention
from jnn.kernels.platform import lowering
from jnn.kernels.random import kept

from .derivatives import same
from .oracle import quick_jit

# Leading sizes, queries, keys, width and that of the values.
SHAPES = {
    "one of each": ((), 1, 1, 1, 1),
    "one query": ((2, 3), 1, 37, 8, 8),
    "few queries": ((2,), 5, 200, 20, 33),
    "a vector of queries": ((1, 2), 16, 17, 3, 1),
    "less than a tile": ((2,), 27, 9, 5, 7),
    "many blocks": ((2,), 70, 129, 32, 40),
    "many keys": ((1, 2), 40, 300, 16, 48),
    "as many heads as tasks": ((4, 4), 33, 120, 8, 8),
}
MASKS = ("none", "causal", "causal and added", "boolean", "added", "keys", "barred", "dropped")


def _arrays(rng, shape, dtype):
    lead, queries, keys, width, values = shape
    sizes = (*lead, queries, width), (*lead, keys, width), (*lead, keys, values), (*lead, queries, values)
    return [jnp.asarray(rng.standard_normal(s), dtype) for s in sizes]


def _form(rng, kind, shape, dtype):
    lead, queries, keys, *_ = shape
    bias, mask = jnp.zeros(1, dtype), jnp.ones(1, bool)
    if kind in ("boolean", "barred"):
        seen = rng.random((queries, keys)) < 0.7
        seen[:: 3 if kind == "barred" else queries + 1] = False
        bias = jnp.where(seen, 0, -jnp.inf).astype(dtype)
    elif kind in ("added", "causal and added"):
        bias = jnp.asarray(rng.standard_normal((*lead[:1], *[1] * (len(lead) - 1), queries, keys)), dtype)
    elif kind == "keys":
        bias = jnp.where(rng.random((*lead, 1, keys)) < 0.6, 0, -jnp.inf).astype(dtype)
    elif kind == "dropped":
        mask = jnp.asarray(rng.random((*lead, keys, queries)) < 0.75)
    form = attention._Form(kind.startswith("causal"), 0.3, 0.25, attention.SDPBackend.MATH, bias.ndim > 1, mask.ndim > 1)
    return form, bias, mask


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_values_and_gradients_are_those_of_the_definition(shape, kind, rng):
    for dtype, rtol in ((np.float64, 1e-12), (np.float32, 2e-5)):
        q, k, v, g = _arrays(rng, shape, dtype)
        form, bias, mask = _form(rng, kind, shape, dtype)

        # Without a bias there is nothing to take its gradient by.
        moving, rest = ((q, k, v, bias), (mask,)) if form.biased else ((q, k, v), (bias, mask))

        def slopes(function, *arrays, g=g, form=form, rest=rest):
            y, pull = jax.vjp(lambda *moved: function(form, *moved, *rest)[0], *arrays)
            return y, *pull(g)

        call = jax.jit(lambda *a, slopes=slopes: slopes(attention._library, *a)).lower(*moving)
        assert "jnn_attention_gradient" in call.as_text()
        expected = quick_jit(lambda *a, slopes=slopes: slopes(attention._definition, *a))(*moving)
        same(call.compile()(*moving), expected, rtol, 1)


def _attend(bias, q, k, v):
    return F.scaled_dot_product_attention(q, k, v, bias)


DERIVATIVES = {
    "forward": lambda f: lambda *a: jax.jvp(f, a, a[::-1]),
    "gradients": lambda f: jax.grad(lambda *a: (f(*a) ** 3).sum(), (0, 1, 2, 3)),
    "twice": lambda f: lambda *a: jax.jvp(jax.grad(lambda *a: (f(*a) ** 3).sum(), (0, 1, 2, 3)), a, a),
    "reverse twice": lambda f: jax.grad(lambda *a: (jax.grad(lambda *a: (f(*a) ** 3).sum(), 1)(*a) ** 2).sum(), (0, 1, 2, 3)),
    "by sample": lambda f: (
        lambda *a: jax.vmap(jax.grad(lambda *a: (f(*a) ** 2).sum(), (0, 1, 2, 3)), (0, 0, None, 0))(a[0], a[1], a[2][0], a[3])
    ),
    "in loops, computed again": lambda f: jax.grad(
        lambda *a: jax.lax.scan(lambda c, _: (jax.checkpoint(f)(a[0], c, *a[2:]), None), a[1], None, 2)[0].sum(), (0, 1, 2, 3)
    ),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_every_derivative_is_that_of_xlas(name, rng, quick_compilation):
    bias, *arrays = (jnp.asarray(rng.standard_normal((2, 12, 12))) for _ in range(4))

    def run():
        jax.clear_caches()
        return jax.tree.leaves(jax.jit(DERIVATIVES[name](lambda *a: _attend(*a)))(bias, *arrays))

    found = run()
    with lowering(native=False, library=False):
        expected = run()
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


def test_nan_infinities_and_queries_without_keys(rng):
    q, k, v, _ = _arrays(rng, ((2,), 20, 30, 4, 4), np.float32)
    mask = np.ones((20, 30), bool)
    mask[3] = mask[19] = False
    q = q.at[0, 5].set(np.nan).at[1, 6].set(np.inf)
    y = F.scaled_dot_product_attention(q, k, v, jnp.asarray(mask))
    with lowering(native=False, library=False):
        jax.clear_caches()
        expected = F.scaled_dot_product_attention(q, k, v, jnp.asarray(mask))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    assert not y[:, 3].any()


def test_half_types_and_shared_keys(rng):
    q, k, v = (jnp.asarray(rng.standard_normal(s), jnp.bfloat16) for s in ((2, 4, 20, 8), (4, 30, 8), (1, 1, 30, 8)))
    y = F.scaled_dot_product_attention(q, k, v)
    assert y.dtype == jnp.bfloat16
    exact = F.scaled_dot_product_attention(*(x.astype(np.float32) for x in (q, *(jnp.broadcast_to(x, (2, 4, 30, 8)) for x in (k, v)))))
    np.testing.assert_allclose(y.astype(np.float32), exact, atol=2e-2)


def test_devices_each_attend_by_the_library(rng):
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    q, k, v, g = _arrays(rng, ((4,), 20, 30, 8, 8), np.float64)

    def slopes(q, k, v, g):
        return jax.vjp(F.scaled_dot_product_attention, q, k, v)[1](g)

    for check in (True, False):
        each = jax.jit(jax.shard_map(slopes, mesh=mesh, in_specs=(jax.P("d"),) * 4, out_specs=jax.P("d"), check_vma=check))
        assert "jnn_attention" in each.lower(q, k, v, g).as_text()
        for a, b in zip(each(q, k, v, g), slopes(q, k, v, g), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11)


@pytest.mark.parametrize("shape", [(1,), (5, 7), (3, 1000, 11), (2, 0)], ids=str)
@pytest.mark.parametrize("key", [jax.random.key(3), jax.random.PRNGKey(4)], ids=["key", "words"])
def test_what_is_kept_is_jaxs_choice(shape, key):
    for rate in (0.1, 0.5, 1e-6, 1.0):
        call = jax.jit(lambda key, rate=rate: kept(key, rate, shape))
        assert "jnn_kept" in call.lower(key).as_text()
        np.testing.assert_array_equal(call(key), jax.random.bernoulli(key, np.float32(1 - rate), shape))
    np.testing.assert_array_equal(
        jax.vmap(lambda key: kept(key, 0.5, shape))(jax.random.split(key, 3))[1], kept(jax.random.split(key, 3)[1], 0.5, shape)
    )


def test_other_generators_are_left_to_jax():
    key = jax.random.key(0, impl="rbg")
    assert "jnn_kept" not in jax.jit(lambda key: kept(key, 0.5, (8,))).lower(key).as_text()


def test_dropped_weights_are_as_many_as_asked(rng):
    q, k = jnp.zeros((4, 64, 8)), jnp.zeros((4, 100, 8))
    y = F.scaled_dot_product_attention(q, k, jnp.ones((4, 100, 1)), dropout_p=0.3, dropout_key=jax.random.key(0))
    assert abs(float(y.mean()) - 1) < 0.02
    assert float(y.std()) > 0.03
