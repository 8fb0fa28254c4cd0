"""Activations: kinks, huge inputs, dtypes, refusals and draws."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jnn
import jnn.functional as F

# fmt: off
PLAIN = [
    "celu", "elu", "gelu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "logsigmoid", "mish",
    "relu", "relu6", "rrelu", "selu", "sigmoid", "silu", "softplus", "softshrink", "softsign", "tanh", "tanhshrink",
]
# fmt: on
KINKS = np.array([-6.0, -3.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 3.0, 6.0])
HUGE = np.array([-np.inf, -1e30, -1e4, -90.0, 90.0, 1e4, 1e30, np.inf, np.nan])


def both(name, x, **kw):
    """Values and gradients of torch and of jnn."""
    t = torch.tensor(x, requires_grad=True)
    y = getattr(torch.nn.functional, name)(t, **kw)
    (g,) = torch.autograd.grad(y.sum(), t)
    mine = getattr(F, name)
    grad = jax.grad(lambda v: mine(v, **kw).sum())
    return (mine(jnp.asarray(x), **kw), grad(jnp.asarray(x))), (y.detach().numpy(), g.numpy())


@pytest.mark.parametrize("name", PLAIN)
def test_values_and_derivatives_at_kinks(name):
    mine, theirs = both(name, KINKS)
    np.testing.assert_allclose(mine[0], theirs[0], rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(mine[1], theirs[1], rtol=1e-7, atol=1e-12)
    forward = jax.jvp(getattr(F, name), (jnp.asarray(KINKS),), (jnp.ones(KINKS.shape),))[1]
    np.testing.assert_allclose(forward, theirs[1], rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", PLAIN)
def test_huge_inputs(name, dtype):
    """No NaN where torch has none, in values and both derivatives."""
    x = HUGE.astype(dtype)
    for mine, theirs in zip(*both(name, x), strict=True):
        known = ~np.isnan(theirs) & ~np.isnan(x)
        np.testing.assert_allclose(np.asarray(mine)[known], theirs[known], rtol=1e-6, atol=1e-30)
    assert np.isnan(getattr(F, name)(jnp.asarray(x))[-1])
    fn = getattr(F, name)
    second = jax.vmap(jax.grad(jax.grad(fn)))(jnp.asarray(x[np.abs(x) < 1e5]))
    assert np.isfinite(second).all()


def test_softmax_of_infinities_is_torchs():
    x = np.array([[-np.inf, -np.inf], [-np.inf, 1.0], [np.inf, 1.0], [1e30, -1e30]])
    for name in ("softmax", "log_softmax", "softmin"):
        theirs = getattr(torch.nn.functional, name)(torch.tensor(x), 1).numpy()
        np.testing.assert_array_equal(getattr(F, name)(jnp.asarray(x), 1), theirs)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 2), (2, 3, 2, 1)])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "softmin"])
def test_implicit_dim_is_torchs_and_warns_on_every_call(name, shape, rng):
    x = rng.standard_normal(shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = getattr(torch.nn.functional, name)(torch.tensor(x)).numpy()
    for _ in range(2):
        with pytest.warns(UserWarning, match=f"^{name}: choosing dim implicitly is deprecated") as caught:
            mine = getattr(F, name)(x)
        assert caught[0].filename == __file__
    np.testing.assert_allclose(mine, theirs, rtol=1e-12)


def test_implicit_dim_of_a_module_warns_at_its_call():
    with pytest.warns(UserWarning, match="^softmax: choosing dim") as caught:
        jnn.Softmax()(jnp.ones(3))
    assert caught[0].filename == __file__


def test_softmax_dtype():
    assert F.softmax(jnp.arange(3), 0, dtype=np.float32).dtype == np.float32
    assert F.log_softmax(jnp.ones(3, jnp.bfloat16), 0, dtype=np.float64).dtype == np.float64
    x = jnp.linspace(-9, 9, 64).astype(jnp.float16)
    np.testing.assert_allclose(F.softmax(x, 0), jax.nn.softmax(x.astype(np.float64)), atol=2e-4)
    with pytest.raises(NotImplementedError, match="softmax: input must be floating point, got dtype=int64"):
        F.softmax(jnp.arange(3), 0)


@pytest.mark.parametrize("name", ["relu", "relu6", "hardtanh", "tanh", "sigmoid", "softsign", "tanhshrink"])
def test_integers_are_taken_where_torch_takes_them(name):
    x = np.arange(-2, 9)
    theirs = getattr(torch.nn.functional, name)(torch.tensor(x)).numpy()
    mine = getattr(F, name)(x)
    assert mine.dtype == theirs.dtype
    np.testing.assert_allclose(mine, theirs, rtol=1e-6)


@pytest.mark.parametrize("name", ["silu", "tanh", "sigmoid", "tanhshrink", "softsign"])
def test_complex_numbers_are_taken_where_torch_takes_them(name):
    x = np.array([0.5 - 0.25j, -1 + 2j])
    np.testing.assert_allclose(getattr(F, name)(x), getattr(torch.nn.functional, name)(torch.tensor(x)).numpy(), rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: F.gelu(jnp.arange(3)), NotImplementedError, r"gelu: input must be floating point, got input.dtype=int64"),
        (lambda: F.elu(jnp.ones(2, np.complex64)), NotImplementedError, "elu: input must be floating point"),
        (lambda: F.relu(jnp.ones(2, bool)), NotImplementedError, "relu: input must be of real numbers, got input.dtype=bool"),
        (lambda: F.gelu(jnp.ones(2), approximate="x"), RuntimeError, "gelu: approximate must be 'none' or 'tanh', got approximate='x'"),
        (lambda: F.glu(jnp.ones(())), RuntimeError, "glu: input must have at least one dimension"),
        (lambda: F.glu(jnp.ones(3)), RuntimeError, "glu: input must have an even size along dim, got dim=-1"),
        (lambda: F.glu(jnp.ones(4), 1), IndexError, "glu: dim must be in"),
        (lambda: F.hardtanh(jnp.ones(2), 2, 1), ValueError, "hardtanh: min_val must not exceed max_val, got min_val=2, max_val=1"),
        (lambda: F.hardtanh(jnp.ones(2, np.uint8)), RuntimeError, "hardtanh: unsigned input needs limits that are not negative"),
        (lambda: F.celu(jnp.ones(2), 0.0), RuntimeError, "celu: alpha must not be 0"),
        (lambda: F.softshrink(jnp.ones(2), -1.0), RuntimeError, "softshrink: lambd must not be negative, got lambd=-1.0"),
        (lambda: F.rrelu(jnp.ones(2), 0.5, 0.1), RuntimeError, "rrelu: lower must not exceed upper, got lower=0.5, upper=0.1"),
        (lambda: F.rrelu(jnp.ones(2), 0.5, float("inf")), RuntimeError, "rrelu: lower and upper must be finite"),
        (lambda: F.prelu(jnp.ones((2, 3)), jnp.ones(2)), RuntimeError, "prelu: weight must have one element or one for each channel"),
        (lambda: F.prelu(jnp.ones(()), jnp.ones(2)), RuntimeError, "prelu: weight must have one element"),
        (lambda: F.prelu(jnp.ones(3), jnp.ones((3, 1))), RuntimeError, "prelu: weight must be 0D or 1D"),
        (lambda: F.prelu(jnp.ones(3), jnp.ones(1, np.float32)), RuntimeError, "prelu: input, weight must have one dtype"),
        (lambda: F.softmax(jnp.ones(2), 3), IndexError, "softmax: dim must be in"),
        (lambda: jnn.Softmax2d()(jnp.ones((2, 2))), ValueError, "Softmax2d: input must be 3D or 4D"),
        (lambda: jnn.Hardtanh(1, 1), AssertionError, "Hardtanh: max_val must exceed min_val, got min_val=1, max_val=1"),
        (lambda: jnn.Threshold(1.0), TypeError, "Threshold: missing a required argument: 'value'"),
    ],
)
def test_refusals(call, error, match):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize(
    "name",
    ["CELU", "ELU", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "Mish", "RReLU", "ReLU", "ReLU6", "SELU", "SiLU", "Threshold"],
)
def test_inplace_is_shown_and_changes_nothing(name):
    args = (0.5, 2.0) if name == "Threshold" else ()
    mine, plain = getattr(jnn, name)(*args, inplace=True), getattr(jnn, name)(*args)
    assert repr(mine) == repr(getattr(torch.nn, name)(*args, inplace=True))
    assert mine.inplace is True
    x = jnp.linspace(-4, 4, 9)
    np.testing.assert_array_equal(mine.eval()(x), plain.eval()(x))
    np.testing.assert_array_equal(x, jnp.linspace(-4, 4, 9))


def test_hardtanh_takes_its_old_names():
    with pytest.warns(FutureWarning, match="Hardtanh: max_value is deprecated, use max_val") as caught:
        mine = jnn.Hardtanh(0.5, max_value=2.0)
    assert caught[0].filename == __file__
    assert repr(mine) == "Hardtanh(min_val=0.5, max_val=2.0)"


def test_prelu_weight_gets_no_nan_from_what_it_does_not_touch():
    grad = jax.grad(lambda w: F.prelu(jnp.array([1.0, -2.0]) * jnp.array([jnp.inf, 1.0]), w).sum())
    np.testing.assert_array_equal(grad(jnp.ones(1)), [-2.0])


def test_rrelu_draws_a_slope_for_each_element(key):
    x = -jnp.ones(20000)
    slope = -F.rrelu(x, 0.2, 0.6, training=True, key=key)
    assert slope.min() >= 0.2
    assert slope.max() <= 0.6
    np.testing.assert_allclose([slope.mean(), slope.std()], [0.4, 0.4 / 12**0.5], atol=4e-3)
    np.testing.assert_array_equal(slope, -F.rrelu(x, 0.2, 0.6, training=True, key=key))
    assert (F.rrelu(x, 0.2, 0.6, training=True, key=jax.random.key(1)) != -slope).any()
    assert F.rrelu(x.astype(jnp.bfloat16), training=True, key=key).dtype == jnp.bfloat16


def test_gumbel_softmax_samples_the_categorical_distribution(key):
    p = np.array([0.1, 0.2, 0.7])
    logits = jnp.broadcast_to(jnp.log(p), (20000, 3))
    hard = F.gumbel_softmax(logits, hard=True, key=key)
    np.testing.assert_array_equal(np.sort(hard, 1), np.broadcast_to([0.0, 0.0, 1.0], hard.shape))
    np.testing.assert_allclose(hard.mean(0), p, atol=0.015)
    soft = F.gumbel_softmax(logits, tau=0.5, key=key)
    np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-12)
    np.testing.assert_array_equal(soft.argmax(1), hard.argmax(1))


def test_gumbel_softmax_hard_has_the_derivatives_of_soft(key, rng):
    x, t = jnp.asarray(rng.standard_normal((2, 3))), jnp.asarray(rng.standard_normal((2, 3)))
    tangents = [jax.jvp(lambda x, h=h: F.gumbel_softmax(x, 0.7, h, dim=0, key=key), (x,), (t,))[1] for h in (False, True)]
    np.testing.assert_array_equal(*tangents)
    assert F.gumbel_softmax(jnp.zeros(()), dim=0, hard=True, key=key) == 1
    with pytest.warns(UserWarning, match="gumbel_softmax: eps is deprecated"):
        F.gumbel_softmax(x, eps=1e-6, key=key)
