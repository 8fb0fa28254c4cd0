"""Module, Parameter and Buffer: registration, names, state, modes, copies, in-place idioms."""

from __future__ import annotations

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jnn as nn


def ones(shape):
    return jnp.ones(shape, jnp.float32)


SOURCES = pytest.mark.parametrize("source", [nn, torch.nn], ids=["jnn", "torch"])


def net(source):
    """The same model on either side, with a shared layer, a tied weight and two kinds of buffer."""
    array = ones if source is nn else torch.ones

    class Net(source.Module):
        def __init__(self):
            super().__init__()
            self.body = source.Sequential(source.Linear(3, 4), source.ReLU())
            self.head = source.Linear(4, 4)
            self.again = self.body[0]
            self.tied = source.Linear(4, 4, bias=False)
            self.tied.weight = self.head.weight
            self.scale = source.Parameter(array((1, 4)))
            self.register_buffer("seen", array(2))
            self.register_buffer("scratch", array(1), persistent=False)
            self.register_parameter("nothing", None)

        def forward(self, x):
            return self.tied(self.head(self.body(x))) * self.scale

    return Net()


def test_names_and_order_are_torchs():
    mine, theirs = net(nn), net(torch.nn)
    for get in ("named_parameters", "named_buffers", "named_modules", "named_children"):
        assert [n for n, _ in getattr(mine, get)()] == [n for n, _ in getattr(theirs, get)()]
    for options in ({"prefix": "p"}, {"recurse": False}, {"remove_duplicate": False}):
        assert [n for n, _ in mine.named_parameters(**options)] == [n for n, _ in theirs.named_parameters(**options)]
    assert [*mine.state_dict()] == [*theirs.state_dict()]
    assert repr(mine) == repr(theirs)
    assert [type(m).__name__ for m in mine.modules()] == [type(m).__name__ for m in theirs.modules()]


@SOURCES
def test_attribute_rules(source):
    m = net(source)
    with pytest.raises(TypeError):
        m.head.weight = 3
    with pytest.raises(TypeError):
        m.head = "no module"
    with pytest.raises(KeyError):
        m.register_parameter("a.b", None)
    with pytest.raises(KeyError):
        m.register_buffer("", None)
    with pytest.raises(KeyError):
        m.register_buffer("head", None)
    with pytest.raises(TypeError):
        m.register_parameter("p", 1)
    with pytest.raises(AttributeError, match="missing"):
        _ = m.missing
    del m.scale
    assert "scale" not in dict(m.named_parameters())
    m.head.bias = None
    assert m.head.bias is None
    assert "head.bias" not in m.state_dict()
    m.head = source.Identity()
    assert "head.weight" not in m.state_dict()
    assert [n for n, _ in m.named_children()][1] == "head"


@SOURCES
def test_state_dict_reports_everything_at_once(source):
    m = net(source)
    before = {k: np.asarray(v) for k, v in m.state_dict().items()}
    state = dict(m.state_dict())
    state["head.weight"] = state["scale"]
    del state["seen"]
    state["other"] = state["scale"]
    with pytest.raises(RuntimeError, match=r"(?s)Missing key.*\"seen\".*Unexpected key.*\"other\".*size mismatch for head.weight"):
        m.load_state_dict(state)
    if source is nn:  # nothing is lost: torch loads the rest before it raises
        for k, v in m.state_dict().items():
            np.testing.assert_array_equal(np.asarray(v), before[k])
    del state["head.weight"], state["tied.weight"]
    missing, unexpected = m.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["seen", "head.weight", "tied.weight"], ["other"])


def test_torch_state_goes_both_ways():
    mine, theirs = net(nn), net(torch.nn)
    mine.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_allclose(mine(x), theirs(torch.tensor(x)).detach().numpy(), rtol=1e-5, atol=1e-6)
    mine.scale.data.fill_(2.0)
    theirs.load_state_dict({k: torch.tensor(np.asarray(v)) for k, v in mine.state_dict().items()})
    np.testing.assert_allclose(mine(x), theirs(torch.tensor(x)).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_a_state_dict_is_a_snapshot():
    m = nn.Linear(2, 2)
    state = m.state_dict()
    old = np.asarray(state["weight"]).copy()
    m.weight.data.zero_()
    np.testing.assert_array_equal(state["weight"], old)
    kept = m.state_dict(keep_vars=True)
    assert kept["weight"] is m.weight


@SOURCES
def test_modes_and_freezing(source):
    m = net(source)
    assert m.training
    assert not m.eval().body[0].training
    m.body.train()
    assert (m.training, m.body[0].training) == (False, True)
    m.body.requires_grad_(False)
    assert [p.requires_grad for p in m.parameters()] == [True, False, False, True, True]
    called = []
    assert m.apply(lambda module: called.append(type(module).__name__)) is m
    assert called == ["Linear", "ReLU", "Sequential", "Linear", "Linear", "Linear", "Net"]


def test_to_converts_floats_only():
    m = net(nn)
    m.register_buffer("count", jnp.zeros((), jnp.int32))
    assert m.to(jnp.bfloat16) is m
    assert {str(v.dtype) for v in m.state_dict().values()} == {"bfloat16", "int32"}
    assert m.double().scale.dtype == np.float64
    assert m.to("cpu", jnp.float32).scale.dtype == np.float32
    with pytest.raises(TypeError, match="Net: dtype must be floating point or complex, got dtype=int32"):
        m.to(np.dtype("int32"))
    with pytest.raises(RuntimeError, match="no such device here, got device='cuda:9'"):
        m.to("cuda:9")
    with jax.enable_x64(False), pytest.raises(TypeError, match="float64 needs JAX's x64 mode"):
        m.double()
    with jax.enable_x64(False), pytest.raises(TypeError, match="Linear: float64 needs JAX's x64 mode"):
        nn.Linear(2, 2, dtype=np.float64)


def test_meta_device_makes_abstract_parameters():
    m = nn.Linear(3, 4, device="meta")
    assert isinstance(m.weight._value, jax.ShapeDtypeStruct)
    assert m.weight.shape == (4, 3)
    with pytest.raises(RuntimeError, match="assign=True"):
        m.load_state_dict(nn.Linear(3, 4).state_dict())
    m.load_state_dict(nn.Linear(3, 4).state_dict(), assign=True)
    assert m(ones(3)).shape == (4,)


def test_copies_keep_ties_and_pickle_keeps_all():
    m = net(nn)
    x = ones((2, 3))
    for twin in (copy.deepcopy(m), pickle.loads(pickle.dumps(nn.Sequential(m.body, m.head, m.head)))):
        ties = [p for _, p in twin.named_parameters(remove_duplicate=False)]
        assert len({id(p) for p in ties}) < len(ties)
    twin = copy.deepcopy(m)
    np.testing.assert_array_equal(twin(x), m(x))
    twin.scale.data.zero_()
    assert not np.asarray(twin(x)).any()
    assert np.asarray(m(x)).any()
    shallow = copy.copy(m)
    shallow.extra = nn.Identity()
    assert not hasattr(m, "extra")


@SOURCES
def test_hooks_run_in_order_and_their_values_count(source):
    m = source.Linear(2, 2)
    seen = []
    m.register_forward_pre_hook(lambda mod, args: seen.append("pre"))
    m.register_forward_pre_hook(lambda mod, args: (args[0] * 0,), prepend=True)
    m.register_forward_pre_hook(lambda mod, args, kwargs: (args, kwargs), with_kwargs=True)
    m.register_forward_hook(lambda mod, args, out: seen.append("post"))
    handle = m.register_forward_hook(lambda mod, args, out: out + 1, prepend=True)
    x = ones(2) if source is nn else torch.ones(2)
    out = m(x)
    assert seen == ["pre", "post"]
    np.testing.assert_allclose(np.asarray(out.detach() if source is not nn else out), np.asarray(m.bias.detach()) + 1, rtol=1e-6)
    handle.remove()
    handle.remove()
    with m.register_forward_hook(lambda mod, args, kwargs, out: out * 0, with_kwargs=True):
        assert not np.asarray(m(x).detach() if source is not nn else m(x)).any()
    assert np.asarray(m(x).detach() if source is not nn else m(x)).any()


@SOURCES
def test_always_called_hooks_run_after_an_error(source):
    m, seen = source.Linear(2, 2), []
    m.register_forward_hook(lambda *a: seen.append("always"), always_call=True)
    m.register_forward_hook(lambda *a: seen.append("never"))
    with pytest.raises(RuntimeError):
        m(ones(3) if source is nn else torch.ones(3))
    assert seen == ["always"]


def test_hooks_see_inside_composites_and_compiled_calls():
    m = net(nn)
    shapes = []
    m.head.register_forward_hook(lambda mod, args, out: shapes.append(out.shape))
    m.body[0].register_forward_hook(lambda mod, args, out: out * 0)
    params, buffers = nn.split(m)
    run = jax.jit(nn.pure(m).apply)
    one, two = (run(params, buffers, jnp.full((2, 3), v, dtype=jnp.float32))[0] for v in (1.0, 5.0))
    np.testing.assert_array_equal(one, two)
    assert shapes == [(2, 4)]


def test_parameters_are_arrays_to_jax():
    p = nn.Parameter(jnp.arange(3.0))
    q = ones(3)
    for got in (p + q, q + p, p * 2, 2 - p, jnp.exp(p), p[1:], p.sum(), -p, p @ q, p == q, p.astype(jnp.float32)):
        assert isinstance(got, jax.Array)
    assert (p.shape, p.ndim, p.dim(), p.numel(), len(p)) == ((3,), 1, 1, 3, 3)
    assert jax.grad(lambda w: jnp.sum(jnp.square(jnp.asarray(w))))(p)._value.tolist() == [0.0, 2.0, 4.0]
    assert jax.tree.leaves(p)[0] is p._value
    with pytest.raises(RuntimeError, match="only floating point and complex arrays can require gradients"):
        nn.Parameter(jnp.arange(3))
    assert nn.Parameter(jnp.arange(3), requires_grad=False).dtype == jnp.arange(3).dtype


def test_in_place_idioms():
    p = nn.Parameter(jnp.arange(3.0))
    p.data.fill_(2.0).add_(1.0, alpha=3).mul_(2).sub_(1).div_(3).clamp_(0, 2.5)
    assert p.tolist() == [2.5] * 3
    p.copy_(np.arange(3))
    p -= 1
    assert isinstance(p, nn.Parameter)
    assert p.tolist() == [-1.0, 0.0, 1.0]
    p[0] = 7
    p.data = p * 2
    assert p.tolist() == [14.0, 0.0, 2.0]
    with pytest.raises(RuntimeError, match="an in-place change must keep the shape"):
        p.fill_(ones(4))
    with pytest.raises(RuntimeError, match="grad must have the shape"):
        p.grad = ones(4)
    nn.manual_seed(3)
    a = p.normal_().tolist()
    nn.manual_seed(3)
    assert p.normal_().tolist() == a
    assert all(0 <= v < 1 for v in p.uniform_().tolist())


def test_manual_seed_gives_the_same_model():
    nn.manual_seed(5)
    a = nn.Linear(3, 3).weight.tolist()
    assert nn.Linear(3, 3).weight.tolist() != a
    nn.manual_seed(5)
    assert nn.Linear(3, 3).weight.tolist() == a


def test_a_live_module_refuses_to_leak_tracers():
    m = nn.BatchNorm1d(3)
    with pytest.raises(RuntimeError, match="buffer num_batches_tracked of a live module cannot be written inside a jax trace"):
        jax.jit(lambda x: m(x))(ones((2, 3)))
    jax.grad(lambda x: jnp.sum(m(x)))(ones((2, 3)))
    assert int(m.num_batches_tracked) == 1
    jax.jit(lambda x: m.eval()(x))(ones((2, 3)))


def test_unknown_modules_are_named():
    class Bare(nn.Module):
        pass

    with pytest.raises(NotImplementedError, match="Bare: define forward"):
        Bare()(1)
    with pytest.raises(TypeError, match="pure: module must be a Module"):
        nn.pure(3)
    with pytest.raises(TypeError, match="Linear: missing a required argument: 'out_features'"):
        nn.Linear(3)
