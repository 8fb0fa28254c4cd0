"""Attention: masks, dropout, the ways to compute it, hooks, refusals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jnn
import jnn.functional as F
from jnn import layers as L
from jnn.attention import SDPBackend, sdpa_kernel
from jnn.attention.bias import causal_lower_right, causal_upper_left

sdpa, sdpa_t = F.scaled_dot_product_attention, torch.nn.functional.scaled_dot_product_attention
BACKENDS = [SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION]


def draw(rng, *shapes):
    return [rng.standard_normal(s) for s in shapes]


def close(a, b, **kw):
    np.testing.assert_allclose(a, b.detach().numpy() if isinstance(b, torch.Tensor) else b, **({"rtol": 1e-9, "atol": 1e-12} | kw))


@pytest.mark.parametrize(
    "mask",
    [
        None,
        np.tri(3, 5, dtype=bool),
        np.zeros((3, 5), bool),
        np.where(np.tri(3, 5, dtype=bool), 0.3, -np.inf),
        np.array([True, False, True, True, False]),
    ],
    ids=["none", "bool", "nothing", "float", "row"],
)
def test_masks_equal_torch(mask, rng):
    q, k, v = draw(rng, (2, 2, 3, 4), (2, 2, 5, 4), (2, 2, 5, 6))
    mask_t = None if mask is None else torch.tensor(np.broadcast_to(mask, (3, 5)).copy())
    close(sdpa(q, k, v, mask), sdpa_t(*map(torch.tensor, (q, k, v)), mask_t))
    assert np.isfinite(jax.grad(lambda q: sdpa(q, k, v, mask).sum())(jnp.asarray(q))).all()


def test_other_arguments_equal_torch(rng):
    q, k, v = draw(rng, (2, 6, 3, 4), (2, 3, 5, 4), (2, 3, 5, 4))
    close(
        sdpa(q, k, v, is_causal=True, scale=0.3, enable_gqa=True),
        sdpa_t(*map(torch.tensor, (q, k, v)), is_causal=True, scale=0.3, enable_gqa=True),
    )
    q, k = draw(rng, (3, 4), (5, 4))
    close(sdpa(q, k, k), sdpa_t(*map(torch.tensor, (q, k, k))))
    close(sdpa(q, k, k, causal_upper_left(3, 5)), sdpa(q, k, k, is_causal=True))
    close(sdpa(q, k, k, causal_lower_right(3, 5)), sdpa(q, k, k, np.tri(3, 5, 2, dtype=bool)))
    close(sdpa(q, k[:0], k[:0]), np.zeros((3, 4)))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_ways_to_compute_agree(causal, masked, rng):
    q, k, v = draw(rng, (2, 300, 8), (2, 257, 8), (2, 257, 8))
    mask = rng.standard_normal((300, 257)) if masked and not causal else None

    def run(q, k, v):
        return jnp.sin(sdpa(q, k, v, mask, is_causal=causal)).sum()

    results = []
    for backend in BACKENDS:
        with sdpa_kernel(backend):
            results.append((run(q, k, v), jax.grad(run, argnums=(0, 1, 2))(q, k, v)))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        close(a, b, rtol=1e-8, atol=1e-10)


def test_the_choice_of_a_way(rng):
    (q,) = draw(rng, (3, 4))
    with (
        pytest.raises(RuntimeError, match="none of the allowed backends exists here, got allowed=\\['CUDNN_ATTENTION'\\]"),
        sdpa_kernel(SDPBackend.CUDNN_ATTENTION),
    ):
        sdpa(q, q, q)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH], set_priority=True):
        sdpa(q, q, q)
    with pytest.raises(AssertionError, match="backends must be"), sdpa_kernel("math"):
        pass


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_keeps_the_mean(backend, key):
    q = jnp.zeros((1, 200, 4))
    v = jnp.ones((1, 500, 4))
    with sdpa_kernel(backend):
        y = sdpa(q, jnp.zeros((1, 500, 4)), v, dropout_p=0.5, dropout_key=key)
        np.testing.assert_array_equal(y, sdpa(q, jnp.zeros((1, 500, 4)), v, dropout_p=0.5, dropout_key=key))
    close(y.mean(), 1, rtol=0.02)
    assert len(np.unique(y[..., 0])) > 20
    assert not sdpa(q, q, q, dropout_p=1.0, dropout_key=key).any()


def test_half_types_sum_in_float32():
    k = jnp.zeros((1, 4096, 8), jnp.float16)
    y = sdpa(k[:, :1], k, jnp.ones_like(k))
    assert y.dtype == jnp.float16
    close(y, np.ones((1, 1, 8)), rtol=2e-3)


def test_hooks_on_the_output_projection_run(rng):
    mha = jnn.MultiheadAttention(4, 2).double()
    x = rng.standard_normal((3, 2, 4))
    plain = mha(x, x, x)[0]
    mha.out_proj.register_forward_hook(lambda module, args, output: 2 * output)
    close(mha(x, x, x)[0], 2 * plain)


def test_weights_of_a_query_that_sees_nothing(rng):
    """As in torch: NaN where the weights are asked for, zeros before the output projection where not."""
    mha, theirs = jnn.MultiheadAttention(4, 2).double(), torch.nn.MultiheadAttention(4, 2).double()
    mha.load_state_dict({n: a.numpy() for n, a in theirs.state_dict().items()})
    x = rng.standard_normal((3, 2, 4))
    mask = np.eye(3, dtype=bool) | np.array([[True], [False], [False]])
    xt = torch.tensor(x)
    for need in (True, False):
        close(mha(x, x, x, attn_mask=mask, need_weights=need)[0], theirs(xt, xt, xt, attn_mask=torch.tensor(mask), need_weights=need)[0])


def test_dropout_of_weights_is_drawn_from_the_run(key):
    spec = L.MultiheadAttention(4, 2, dropout=0.5)
    params, buffers = spec.init(key)
    x = jnp.ones((6, 2, 4), np.float32)
    run = lambda k, **kw: spec.apply(params, buffers, x, x, x, train=True, key=k, **kw)[0][0]  # noqa: E731
    for kw in ({}, {"need_weights": False}):
        np.testing.assert_array_equal(run(key, **kw), run(key, **kw))
        assert (run(key, **kw) != run(jax.random.key(1), **kw)).any()


def test_static_keys_and_values_equal_torch(rng):
    q, weight, out = draw(rng, (3, 2, 4), (12, 4), (4, 4))
    static_k, static_v = draw(rng, (4, 5, 2), (4, 5, 2))

    def run(fn, make):
        a = [make(x) for x in (q, weight, out, static_k, static_v)]
        return fn(a[0], a[0], a[0], 4, 2, a[1], None, None, None, True, 0.0, a[2], None, static_k=a[3], static_v=a[4])

    for mine, theirs in zip(
        run(F.multi_head_attention_forward, jnp.asarray), run(torch.nn.functional.multi_head_attention_forward, torch.tensor), strict=True
    ):
        close(mine, theirs)


Q = np.zeros((3, 2, 4), np.float32)


@pytest.mark.parametrize(
    ("exc", "match", "call"),
    [
        (RuntimeError, "attn_mask and is_causal=True exclude", lambda: sdpa(Q, Q, Q, np.ones((2, 2), bool), is_causal=True)),
        (RuntimeError, "must have one dtype", lambda: sdpa(Q, Q, Q.astype(np.float64))),
        (RuntimeError, "attn_mask must be boolean", lambda: sdpa(Q, Q, Q, np.ones((2, 2), int))),
        (RuntimeError, "shapes must be", lambda: sdpa(Q, Q[..., :2], Q)),
        (RuntimeError, "shapes must be", lambda: sdpa(Q, Q, Q, np.ones((3, 3), bool))),
        (RuntimeError, "at least two dimensions", lambda: sdpa(Q[0, 0], Q, Q)),
        (RuntimeError, "query must be floating point", lambda: sdpa(Q.astype(int), Q, Q)),
        (RuntimeError, r"dropout_p must be in \[0, 1\]", lambda: sdpa(Q, Q, Q, dropout_p=1.5)),
        (RuntimeError, "heads of key and value must divide", lambda: sdpa(Q, Q[:2], Q[:2], enable_gqa=True)),
        (AssertionError, "num_heads must divide embed_dim", lambda: jnn.MultiheadAttention(5, 2)),
        (ValueError, "embed_dim must be at least 1", lambda: jnn.MultiheadAttention(0, 2)),
        (AssertionError, "query must be 2D or 3D", lambda: jnn.MultiheadAttention(4, 2)(Q[0, 0], Q, Q)),
        (AssertionError, "key must be 3D", lambda: jnn.MultiheadAttention(4, 2)(Q, Q[0], Q)),
        (AssertionError, "last dimension of query must be embed_dim", lambda: jnn.MultiheadAttention(2, 2)(Q, Q, Q)),
        (RuntimeError, r"attn_mask must have shape \(3, 3\)", lambda: jnn.MultiheadAttention(4, 2)(Q, Q, Q, attn_mask=np.zeros((2, 3)))),
        (AssertionError, "attn_mask must be boolean", lambda: jnn.MultiheadAttention(4, 2)(Q, Q, Q, attn_mask=np.zeros((3, 3), int))),
        (AssertionError, "key_padding_mask must have shape", lambda: jnn.MultiheadAttention(4, 2)(Q, Q, Q, np.zeros((3, 3), bool))),
        (RuntimeError, "is_causal says that attn_mask is causal", lambda: jnn.MultiheadAttention(4, 2)(Q, Q, Q, is_causal=True)),
        (AssertionError, "there must be two sizes", lambda: causal_lower_right(3)),
    ],
)
def test_refusals(exc, match, call):
    with pytest.raises(exc, match=match):
        call()
