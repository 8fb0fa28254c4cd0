"""Dropout: what is dropped, how often, in which shape, and from which key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jnn
import jnn.functional as F
from jnn import layers

ALPHA = -1.7580993408473766


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_and_scale(p, key):
    y = F.dropout(jnp.full(40000, 3.0), p, key=key)
    np.testing.assert_allclose(np.unique(y), [0, 3 / (1 - p)])
    assert abs((y == 0).mean() - p) < 4 * (p * (1 - p) / y.size) ** 0.5


@pytest.mark.parametrize("name", ["alpha_dropout", "feature_alpha_dropout"])
def test_alpha_dropout_keeps_mean_and_variance(name, key, rng):
    x = jnp.asarray(rng.standard_normal((200, 200)))
    y = getattr(F, name)(x, 0.3, training=True, key=key)
    np.testing.assert_allclose([y.mean(), y.std()], [0, 1], atol=0.02)
    a = (0.7 * (1 + 0.3 * ALPHA**2)) ** -0.5
    dropped = np.isclose(y, a * ALPHA * (1 - 0.3))
    assert abs(dropped.mean() - 0.3) < 0.01
    np.testing.assert_allclose(y[~dropped], (a * (x - 0.3 * ALPHA))[~dropped], rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "shape", "lead"),
    [
        ("dropout1d", (64, 32, 3), 2),
        ("dropout1d", (512, 3), 1),
        ("dropout2d", (64, 32, 2, 2), 2),
        ("dropout3d", (64, 32, 2, 1, 2), 2),
        ("dropout3d", (512, 2, 1, 2), 1),
        ("feature_alpha_dropout", (64, 32), 2),
        ("feature_alpha_dropout", (64, 32, 2, 2), 2),
    ],
)
def test_whole_channels_are_dropped(name, shape, lead, key):
    y = np.asarray(getattr(F, name)(jnp.ones(shape), 0.4, training=True, key=key))
    rows = y.reshape(*shape[:lead], -1)
    assert (rows == rows[..., :1]).all()
    assert abs((rows[..., 0] != y.max()).mean() - 0.4) < 0.12


def test_ranks_that_torch_warns_of(key):
    with pytest.warns(UserWarning, match=r"dropout2d: 3D input is taken as \(N, C, L\)"):
        y = F.dropout2d(jnp.ones((8, 16, 4)), key=key)
    assert (y == y[..., :1]).all()
    with pytest.warns(UserWarning, match="dropout2d: input should be 4D, got 2D"):
        F.dropout2d(jnp.ones((8, 16)), key=key)
    with pytest.warns(UserWarning, match="dropout3d: input should be 4D or 5D, got 3D") as caught:
        y = F.dropout3d(jnp.ones((64, 2, 2)), key=key)
    assert caught[0].filename == __file__
    assert (y == y[:, :1, :1]).all()
    with pytest.raises(RuntimeError, match=r"dropout1d: input must be 2D or 3D, got input.shape=\(4,\)"):
        F.dropout1d(jnp.ones(4), key=key)
    with pytest.raises(RuntimeError, match="feature_alpha_dropout: input must have a batch and a channel dimension"):
        F.feature_alpha_dropout(jnp.ones(4), training=True, key=key)


@pytest.mark.parametrize("name", ["dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"])
def test_no_draw_when_nothing_is_random(name):
    """No key is drawn in evaluation, for p of 0 or 1, or for nothing, so that none is needed under a trace."""
    fn, x = getattr(F, name), jnp.ones((2, 3, 2, 2) if name != "dropout1d" else (2, 3, 2))
    np.testing.assert_array_equal(jax.jit(lambda x: fn(x, 0.5, training=False))(x), x)
    np.testing.assert_array_equal(jax.jit(lambda x: fn(x, 0.0, training=True))(x), x)
    np.testing.assert_array_equal(jax.jit(lambda x: fn(x, 1.0, training=True))(x * jnp.nan), 0 * x)
    assert jax.jit(lambda x: fn(x, 0.5, training=True))(x[:0]).shape == x[:0].shape
    with pytest.raises(RuntimeError, match=f"{name}: random numbers inside a jax trace need a key"):
        jax.jit(lambda x: fn(x, 0.5, training=True))(x)


def test_same_key_same_mask(key):
    x = jnp.ones((4, 5))
    np.testing.assert_array_equal(F.dropout(x, key=key), F.dropout(x, key=key))
    np.testing.assert_array_equal(F.dropout(x, key=key), jax.jit(F.dropout)(x, key=key))
    np.testing.assert_array_equal(F.dropout(x, key=key) > 0, F.dropout(x.astype(jnp.bfloat16), key=key) > 0)
    assert (F.dropout(x) != F.dropout(x)).any()
    first = jnn.manual_seed(3) and F.dropout(x)
    np.testing.assert_array_equal(first, jnn.manual_seed(3) and F.dropout(x))


def test_layers_of_one_net_draw_different_masks(key):
    net = layers.Sequential(layers.Dropout(), layers.Dropout())
    a, b = (net.apply({}, {}, jnp.ones(4000), train=True, key=key)[0] for _ in range(2))
    np.testing.assert_array_equal(a, b)
    assert abs((a == 4).mean() - 0.25) < 0.03


def test_a_key_is_asked_for_by_the_pure_face():
    with pytest.raises(RuntimeError, match="dropout: random numbers need a key; pass key= to apply"):
        layers.Dropout().apply({}, {}, jnp.ones(3), train=True)


def test_gradient_is_the_mask(key):
    grad = jax.grad(lambda x: F.dropout(x, 0.3, key=key).sum())(jnp.ones(50))
    np.testing.assert_array_equal(grad, F.dropout(jnp.ones(50), 0.3, key=key))


@pytest.mark.parametrize("p", [-0.1, 1.5])
def test_refusals(p, key):
    for name in ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"):
        with pytest.raises(ValueError, match=rf"{name}: p must be in \[0, 1\], got p={p}"):
            getattr(jnn, name)(p)
    with pytest.raises(ValueError, match=r"dropout: p must be in \[0, 1\]"):
        F.dropout(jnp.ones(2), p, training=False)
    with pytest.raises(RuntimeError, match="dropout: input must be floating point"):
        F.dropout(jnp.arange(3), key=key)
