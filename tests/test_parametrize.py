"""Parametrizations: the same calls on torch and on jnn, the same observations; then what only jnn's traces ask."""

from __future__ import annotations

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import jnn
from jnn.utils import parametrizations, parametrize

pytestmark = pytest.mark.usefixtures("quick_compilation")

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


class Side:
    """What differs between the two sides, under one name."""

    def __init__(self, nn, tensor):
        self.nn, self.tensor = nn, tensor
        self.P = nn.utils.parametrize
        self.ready = nn.utils.parametrizations
        self.is_jnn = nn is jnn

        class Symmetric(nn.Module):
            def forward(self, x):
                low = tril(x)
                return low + low.mT - low * tensor(np.eye(x.shape[-1], dtype=np.float32))

            def right_inverse(self, x):
                return tril(x)

        class Double(nn.Module):
            def forward(self, x):
                return x * 2

            def right_inverse(self, x):
                return x / 2

        class Bare(nn.Module):
            """No right_inverse."""

            def forward(self, x):
                return x + 1

        class Product(nn.Module):
            """Of two originals, whose shapes are others."""

            def forward(self, a, b):
                return a[:, None] * b[None, :]

            def right_inverse(self, x):
                return x[:, 0], x[0] / x[0, 0]

        class Bad(nn.Module):
            def __init__(self, forward, right_inverse=None):
                super().__init__()
                self.fns = (forward, right_inverse or (lambda x: x))

            def forward(self, *x):
                return self.fns[0](*x)

            def right_inverse(self, x):
                return self.fns[1](x)

        tril = jnp.tril if self.is_jnn else torch.tril
        self.Symmetric, self.Double, self.Bare, self.Product, self.Bad = Symmetric, Double, Bare, Product, Bad

    def linear(self):
        layer, rng = self.nn.Linear(4, 4), np.random.default_rng(0)
        layer.load_state_dict({k: self.tensor(rng.standard_normal(v.shape).astype(np.float32)) for k, v in layer.state_dict().items()})
        return layer

    def array(self, x):
        return np.asarray(x.detach() if isinstance(x, torch.Tensor) or hasattr(x, "requires_grad") else x)

    def observe(self, m):
        """All that both sides must agree on about a module."""
        return (
            repr(m),
            type(m).__name__,
            [n for n, _ in m.named_parameters()],
            [n for n, _ in m.named_buffers()],
            [*m.state_dict()],
            {k: self.array(v) for k, v in m.state_dict().items()},
            self.array(m.weight),
            self.array(m(self.tensor(X))),
            self.P.is_parametrized(m),
            self.P.is_parametrized(m, "weight"),
            self.P.is_parametrized(m, "bias"),
            self.P.type_before_parametrizations(m).__name__,
            getattr(m.weight, "requires_grad", None) if not self.P.is_parametrized(m) else None,
        )


JNN, TORCH = Side(jnn, jnp.asarray), Side(torch.nn, torch.tensor)
SIDES = pytest.mark.parametrize("side", [JNN, TORCH], ids=["jnn", "torch"])


def agree(script):
    """Run a script, a generator of observations, on both sides and compare them."""
    steps = 0
    for mine, theirs in zip(script(JNN), script(TORCH), strict=True):
        jax.tree.map(compare, mine, theirs)
        steps += 1
    assert steps


def compare(mine, theirs):
    if isinstance(theirs, np.ndarray):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
        assert mine.dtype == theirs.dtype
    else:
        assert mine == theirs


def register_and_remove(s, leave=True):
    m = s.linear()
    weight = m.weight
    assert s.P.register_parametrization(m, "weight", s.Symmetric()) is m
    yield s.observe(m)
    assert m.parametrizations.weight.original is weight
    s.P.register_parametrization(m, "bias", s.Double())
    yield s.observe(m)
    s.P.register_parametrization(m, "weight", s.Double())
    yield s.observe(m), len(m.parametrizations.weight), m.parametrizations.weight.unsafe
    assert s.P.remove_parametrizations(m, "weight", leave_parametrized=leave) is m
    assert m.weight is weight
    yield s.observe(m)
    s.P.remove_parametrizations(m, "bias")
    yield s.observe(m), hasattr(m, "parametrizations"), type(m) is s.nn.Linear


def leave_the_original(s):
    yield from register_and_remove(s, leave=False)


def assign(s):
    m = s.linear()
    s.P.register_parametrization(m, "weight", s.Symmetric())
    s.P.register_parametrization(m, "weight", s.Double())
    value = np.arange(16, dtype=np.float32).reshape(4, 4)
    m.weight = s.tensor(value + value.T)
    yield s.observe(m)
    with pytest.raises(KeyError):
        m.weight = s.nn.Parameter(s.tensor(value))
    s.P.register_parametrization(m, "weight", s.Bare())
    yield s.observe(m)
    with pytest.raises(RuntimeError, match="right_inverse"):
        m.weight = s.tensor(value)


def several_originals(s):
    m = s.linear()
    s.P.register_parametrization(m, "weight", s.Product())
    s.P.register_parametrization(m, "weight", s.Double())
    yield s.observe(m), m.parametrizations.weight.ntensors, m.parametrizations.weight.is_tensor
    m.weight = s.tensor(np.outer(np.arange(1, 5), np.arange(2, 6)).astype(np.float32))
    yield s.observe(m)
    with pytest.raises(ValueError):
        s.P.remove_parametrizations(m, "weight", leave_parametrized=False)
    s.P.remove_parametrizations(m, "weight")
    yield s.observe(m)


def frozen_and_buffers(s):
    m = s.linear()
    m.weight.requires_grad_(False)
    m.register_buffer("scale", s.tensor(X))
    s.P.register_parametrization(m, "weight", s.Product())
    yield [p.requires_grad for p in m.parametrizations.weight.parameters()]
    s.P.register_parametrization(m, "scale", s.Double())
    yield s.observe(m), s.array(m.scale)
    s.P.register_parametrization(m, "scale", s.Double())
    yield [n for n, _ in m.named_buffers()], s.array(m.scale), s.array(m.parametrizations.scale.original)
    s.P.remove_parametrizations(m, "scale")
    yield s.observe(m), s.array(m.scale), [n for n, _ in m.named_buffers()]
    s.P.remove_parametrizations(m, "weight")
    yield [n for n, _ in m.named_parameters()], [n for n, _ in m.named_buffers()], [*m.state_dict()]


def modes(s):
    m = s.linear().eval()
    p = s.Double()
    s.P.register_parametrization(m, "weight", p)
    yield p.training, m.parametrizations.training
    m.train()
    yield p.training


def unsafe(s):
    m = s.linear()
    s.P.register_parametrization(m, "weight", s.Bad(lambda x: x[:2]), unsafe=True)
    yield tuple(m.weight.shape), m.parametrizations.weight.unsafe
    s.P.register_parametrization(m, "weight", s.Double())
    yield tuple(m.weight.shape), m.parametrizations.weight.unsafe


def not_implemented(s):
    def refuse(x):
        raise NotImplementedError

    m = s.linear()
    s.P.register_parametrization(m, "weight", s.Bad(lambda x: x + 1, refuse))
    yield s.observe(m)
    s.P.register_parametrization(m, "weight", s.Bad(lambda x: x * 3, refuse))
    yield s.observe(m)


def transfer(s):
    m = s.linear()
    s.P.register_parametrization(m, "weight", s.Symmetric())
    s.P.register_parametrization(m, "bias", s.Double())
    to = s.nn.Linear(4, 4)
    assert s.P.transfer_parametrizations_and_params(m, to, "weight") is to
    yield [*to.state_dict()], s.array(to.weight), s.P.is_parametrized(to, "bias")
    assert to.parametrizations.weight[0] is m.parametrizations.weight[0]
    assert to.parametrizations.weight.original is m.parametrizations.weight.original
    s.P.transfer_parametrizations_and_params(m, to)
    yield [*to.state_dict()], s.array(to.weight), s.array(to.bias)
    bare = s.nn.Module()
    s.P.transfer_parametrizations_and_params(m, bare, "bias")
    yield [*bare.state_dict()], s.array(bare.bias), type(bare).__name__
    yield type(s.P.transfer_parametrizations_and_params(s.linear(), s.linear())).__name__
    pair = s.linear()
    s.P.register_parametrization(pair, "weight", s.Product())
    to = s.P.transfer_parametrizations_and_params(pair, s.nn.Linear(4, 4))
    yield [*to.state_dict()], s.array(to.weight)


def copies(s):
    m = s.linear()
    s.P.register_parametrization(m, "weight", s.Symmetric())
    other = copy.deepcopy(m)
    yield s.observe(other)
    assert other.parametrizations.weight.original is not m.parametrizations.weight.original
    with s.P.cached():
        other = copy.deepcopy(m)
        yield s.observe(other), other.weight is other.weight
        if s.is_jnn:  # torch gives the copy its original's cached value
            assert other.weight is not m.weight
    yield other.weight is other.weight
    with pytest.raises(RuntimeError, match="state_dict"):
        pickle.dumps(m)
    with pytest.raises(RuntimeError, match="state_dict"):
        pickle.dumps(s.nn.Sequential(m))
    fresh = s.linear()
    s.P.register_parametrization(fresh, "weight", s.Symmetric())
    fresh.load_state_dict(m.state_dict())
    yield s.observe(fresh)


def cached_calls(s):
    calls = []

    class Counting(s.nn.Module):
        def forward(self, x):
            calls.append(0)
            return x * 2

    m = s.linear()
    s.P.register_parametrization(m, "weight", Counting())
    calls.clear()
    _ = m.weight, m.weight
    yield len(calls)
    with s.P.cached():
        _ = m.weight, m.weight
        with s.P.cached():
            _ = m.weight
        _ = m.weight
        yield len(calls)
    _ = m.weight
    yield len(calls)


SCRIPTS = [
    register_and_remove,
    leave_the_original,
    assign,
    several_originals,
    frozen_and_buffers,
    modes,
    unsafe,
    not_implemented,
    transfer,
    copies,
    cached_calls,
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda f: f.__name__)
def test_side_by_side(script):
    agree(script)


@pytest.mark.parametrize("chained", [False, True], ids=["first", "second"])
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda s: s.Bad(lambda x: 3), "array|tensor"),
        (lambda s: s.Bad(lambda x: x[:2]), "shape"),
        (lambda s: s.Bad(lambda x: x > 0), "dtype"),
        (lambda s: s.Bad(lambda x: x, lambda x: x > 0), "dtype"),
        (lambda s: s.Bad(lambda x: x, lambda x: 3), "right_inverse"),
        (lambda s: s.Bad(lambda *x: x[0], lambda x: [x, 3]), "right_inverse"),
    ],
    ids=["no array", "shape", "dtype", "inverse dtype", "inverse no array", "inverse not arrays"],
)
@SIDES
def test_parametrizations_that_are_refused(side, make, match, chained):
    m = side.linear()
    before = side.array(m.weight)
    if chained:
        side.P.register_parametrization(m, "weight", side.Double())
    with pytest.raises(ValueError, match=match):
        side.P.register_parametrization(m, "weight", make(side))
    assert side.P.is_parametrized(m) == chained
    if side.is_jnn:
        np.testing.assert_array_equal(m.weight, before)


@SIDES
def test_what_is_not_there(side):
    m = side.linear()
    for name in ("absent", "forward"):
        with pytest.raises(ValueError, match=name):
            side.P.register_parametrization(m, name, side.Double())
    with pytest.raises(ValueError, match="weight"):
        side.P.remove_parametrizations(m, "weight")
    with pytest.raises(ValueError):
        side.P.ParametrizationList([], m.weight)
    for ready in (side.ready.orthogonal, side.ready.spectral_norm):
        with pytest.raises(ValueError, match="absent"):
            ready(m, "absent")


@SIDES
def test_ready_parametrizations_that_are_refused(side):
    m = side.linear()
    with pytest.raises(ValueError, match="orthogonal_map"):
        side.ready.orthogonal(m, orthogonal_map="exp")
    with pytest.raises(ValueError, match="matrix"):
        side.ready.orthogonal(m, "bias")
    m.register_buffer("complex", side.tensor(X.astype(np.complex64)))
    with pytest.raises(ValueError, match="complex"):
        side.ready.orthogonal(m, "complex", "householder")
    with pytest.raises(ValueError, match="n_power_iterations"):
        side.ready.spectral_norm(m, n_power_iterations=0)
    with pytest.raises(IndexError, match="2"):
        side.ready.spectral_norm(m, dim=2)
    side.ready.orthogonal(m, orthogonal_map="cayley", use_trivialization=False)
    with pytest.raises(NotImplementedError, match=r"cayley|Cayley"):
        m.weight = side.tensor(np.eye(4, dtype=np.float32))
    m = side.linear()
    side.ready.orthogonal(m)
    with pytest.raises(ValueError, match="shape"):
        m.weight = side.tensor(X)


class TwoSided:
    """A module with one parameter, and its gradient, on both sides."""

    def __init__(self, shape, dtype=np.float64):
        value = np.random.default_rng(0).standard_normal(shape).astype(dtype)
        if np.issubdtype(dtype, np.complexfloating):
            value = value + 1j * np.random.default_rng(1).standard_normal(shape)
        self.weights = np.random.default_rng(2).standard_normal(shape)
        self.mine, self.theirs = jnn.Module(), torch.nn.Module()
        self.mine.weight, self.theirs.weight = jnn.Parameter(value), torch.nn.Parameter(torch.tensor(value))

    def both(self, name, *args, **kwargs):
        for side, module in ((JNN, self.mine), (TORCH, self.theirs)):
            getattr(side.ready, name)(module, "weight", *args, **kwargs)
        self.load()

    def load(self):
        self.mine.load_state_dict({k: v.numpy() for k, v in self.theirs.state_dict().items()})

    def check(self, tolerance=1e-9):
        np.testing.assert_allclose(self.mine.weight, self.theirs.weight.detach().numpy(), rtol=tolerance, atol=tolerance)
        if np.iscomplexobj(self.mine.weight):
            return
        jnn.backward(lambda m: (m.weight * self.weights).sum(), self.mine)
        (self.theirs.weight * torch.tensor(self.weights)).sum().backward()
        for a, b in zip(self.mine.parameters(), self.theirs.parameters(), strict=True):
            np.testing.assert_allclose(a.grad, b.grad.numpy(), rtol=tolerance, atol=tolerance)
        self.mine.zero_grad()
        self.theirs.zero_grad()

    def move(self, where=1.0):
        """A step away from where the parametrization starts."""
        for p in self.theirs.parameters():
            with torch.no_grad():
                p += torch.tensor(0.1 * np.random.default_rng(3).standard_normal(p.shape) * where)
        self.load()


@pytest.mark.parametrize("trivial", [True, False])
@pytest.mark.parametrize("orthogonal_map", ["matrix_exp", "cayley", "householder", None])
@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5), (2, 4, 3)], ids=str)
def test_orthogonal(shape, orthogonal_map, trivial):
    two = TwoSided(shape)
    two.both("orthogonal", orthogonal_map, use_trivialization=trivial)
    two.check()
    # The signs on a householder's diagonal are fixed.
    two.move(1 - np.eye(*shape[-2:]))
    two.check()
    w = np.asarray(two.mine.weight)
    gram = w @ w.swapaxes(-1, -2) if shape[-2] < shape[-1] else w.swapaxes(-1, -2) @ w
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(gram.shape[-1]), gram.shape), atol=1e-12)
    if trivial or orthogonal_map == "householder":
        two.mine.weight = w[..., ::-1]
        np.testing.assert_allclose(two.mine.weight, w[..., ::-1], atol=1e-12)


def test_orthogonal_starts_where_it_can():
    for shape in ((4, 4), (5, 3), (3, 5)):
        value = np.linalg.qr(np.random.default_rng(0).standard_normal((5, 5)) if 5 in shape else np.eye(4)[::-1])[0]
        m = jnn.Module()
        m.weight = jnn.Parameter(value[: shape[0], : shape[1]])
        parametrizations.orthogonal(m)
        np.testing.assert_allclose(m.weight, value[: shape[0], : shape[1]], atol=1e-12)


@pytest.mark.parametrize("orthogonal_map", ["matrix_exp", "cayley"])
def test_unitary(orthogonal_map):
    two = TwoSided((4, 3), np.complex128)
    two.both("orthogonal", orthogonal_map)
    two.move()
    two.check()
    w = np.asarray(two.mine.weight)
    np.testing.assert_allclose(w.conj().T @ w, np.eye(3), atol=1e-12)


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, None])
def test_weight_norm(dim):
    two = TwoSided((3, 4, 2))
    start = np.asarray(two.mine.weight)
    two.both("weight_norm", dim=dim)
    np.testing.assert_allclose(two.mine.weight, start, rtol=1e-12)
    two.move()
    two.check()
    parametrize.remove_parametrizations(two.mine, "weight")
    np.testing.assert_allclose(two.mine.weight, two.theirs.weight.detach(), rtol=1e-12)


@pytest.mark.parametrize(("shape", "dim", "n"), [((4, 3), 0, 1), ((4, 3), 1, 3), ((3, 2, 4), -2, 2), ((5,), 0, 1)], ids=str)
def test_spectral_norm(shape, dim, n):
    two = TwoSided(shape)
    two.both("spectral_norm", dim=dim, n_power_iterations=n)
    for _ in range(2):  # each reading moves the vectors; check reads twice on both sides
        two.check()
        for k, v in two.theirs.state_dict().items():
            np.testing.assert_allclose(two.mine.state_dict()[k], v, rtol=1e-10, atol=1e-12)
    two.mine.eval()
    two.theirs.eval()
    two.move()
    two.check()


@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose2d"])
def test_spectral_norm_of_convolutions(name):
    mine, theirs = (getattr(s.nn, name)(2, 3, 2) for s in (JNN, TORCH))
    for s, m in ((JNN, mine), (TORCH, theirs)):
        s.ready.spectral_norm(m)
    assert {k: tuple(v.shape) for k, v in mine.state_dict().items()} == {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
    assert repr(mine) == repr(theirs)


def test_spectral_norm_bounds_the_weight():
    m = parametrizations.spectral_norm(jnn.Linear(20, 30))
    for _ in range(20):
        m(jnp.ones((1, 20), jnp.float32))
    assert abs(np.linalg.norm(m.weight, 2) - 1) < 0.02


def model():
    return jnn.Sequential(
        parametrizations.spectral_norm(jnn.Linear(4, 5)),
        jnn.Tanh(),
        parametrizations.weight_norm(jnn.Linear(5, 4)),
        parametrizations.orthogonal(jnn.Linear(4, 4)),
    )


def test_pure_and_live_calls_agree():
    m = model()
    params, buffers = jnn.split(m)
    assert "original" in params["0"]["parametrizations"]["weight"]
    pure = jnn.pure(m)
    out, new = jax.jit(lambda *a: pure.apply(*a, train=True))(params, buffers, X)
    np.testing.assert_allclose(out, m(X), rtol=1e-5)
    u = new["0"]["parametrizations"]["weight"]["0"]["_u"]
    np.testing.assert_allclose(u, m.state_dict()["0.parametrizations.weight.0._u"], rtol=1e-5)
    assert (u != buffers["0"]["parametrizations"]["weight"]["0"]["_u"]).any()
    out, new = pure.apply(params, buffers, X)
    jax.tree.map(np.testing.assert_array_equal, new, buffers)


def test_training_keeps_constraints_and_compiles_once():
    m, traces = model(), []

    def loss(m, x):
        traces.append(0)
        return ((m(x) - 1) ** 2).mean()

    step = jnn.train_step(loss, jnn.optim.Optimizer(m, optax.adam(0.05)))
    losses = [float(step(X)) for _ in range(20)]
    assert losses[-1] < losses[0] / 2
    assert len(traces) == 1
    w = np.asarray(m[3].weight)
    np.testing.assert_allclose(w @ w.T, np.eye(4), atol=1e-5)
    assert abs(np.linalg.norm(m[0].weight, 2) - 1) < 0.05
    # An equal model is the same program.
    other = copy.deepcopy(m)
    jnn.value_and_grad(loss)(m, X)
    before = len(traces)
    jnn.value_and_grad(loss)(other, X)
    assert len(traces) - before <= 1


@pytest.mark.parametrize("orthogonal_map", ["matrix_exp", "cayley", "householder"])
def test_derivatives_of_every_kind(orthogonal_map):
    m = jnn.Linear(3, 3).to(dtype=np.float64)
    parametrizations.orthogonal(m, orthogonal_map=orthogonal_map)
    pure, (params, buffers) = jnn.pure(m), jnn.split(m)
    x = np.linspace(0.1, 1, 3)

    def f(original):
        p = {**params, "parametrizations": {"weight": {"original": original}}}
        return pure.apply(p, buffers, x)[0].sum()

    at = params["parametrizations"]["weight"]["original"] + 0.1 * (1 - np.eye(3))
    batch = jnp.stack([at, at + 0.1 * (1 - np.eye(3))])
    np.testing.assert_allclose(jax.vmap(f)(batch), [f(b) for b in batch], rtol=1e-10)
    np.testing.assert_allclose(jax.jvp(f, (at,), (jnp.ones_like(at),))[1], jax.grad(f)(at).sum(), rtol=1e-10)
    hessian = jax.hessian(f)(at).reshape(9, 9)
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-10)


def test_a_cached_value_serves_one_trace_only():
    m = parametrize.register_parametrization(jnn.Linear(4, 4), "weight", JNN.Symmetric())
    with parametrize.cached():
        eager = m.weight
        inside = jax.jit(lambda: m.weight * 2)()
        twice, _ = jax.lax.scan(lambda total, _: (total + m.weight, None), jnp.zeros((4, 4), jnp.float32), length=2)
        after = m.weight
    for value in (inside, twice, 2 * after):
        np.testing.assert_allclose(value, 2 * eager, rtol=1e-6)


def test_recurrent_weights():
    theirs, mine = torch.nn.LSTM(4, 3), jnn.LSTM(4, 3)
    for s, m in ((JNN, mine), (TORCH, theirs)):
        s.ready.weight_norm(m, "weight_hh_l0")
    mine.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    assert [*mine.state_dict()] == [*theirs.state_dict()]
    x = np.linspace(-1, 1, 40, dtype=np.float32).reshape(5, 2, 4)
    with parametrize.cached():
        np.testing.assert_allclose(mine(x)[0], theirs(torch.tensor(x))[0].detach(), rtol=1e-4, atol=1e-6)


def test_what_the_older_weight_norm_saved_is_loaded():
    for s in (JNN, TORCH):
        with pytest.warns(FutureWarning, match="weight_norm"):
            old = s.nn.utils.weight_norm(s.linear())
        new = s.ready.weight_norm(s.nn.Linear(4, 4))
        new.load_state_dict(old.state_dict())
        np.testing.assert_allclose(s.array(new.weight), s.array(old.weight), rtol=1e-6)


def test_fresh_initial_values_of_the_rest():
    m = model()
    params, _ = jnn.pure(m).init(jax.random.key(1))
    assert (params["2"]["bias"] != m[2].bias.detach()).any()
    kept = params["2"]["parametrizations"]["weight"]["original1"]
    np.testing.assert_array_equal(kept, m[2].parametrizations.weight.original1.detach())
