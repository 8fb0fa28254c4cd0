"""Hooks on gradients and state, and the rest of Module: the same calls on torch and on jnn, the same observations."""

from __future__ import annotations

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jnn as nn
from jnn.module import hooks as jnn_hooks

X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)


# torch warns where a hook fires although no input needs a gradient; jnn fires it too.
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")


def pair():
    """The same two-layer model on both sides."""
    theirs = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    mine = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    mine.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    return mine, theirs


def gradients(mine, theirs, hook_inputs=False):
    """Run backward on both sides; returns both sides' gradients of the parameters and of the input."""
    nn.backward(lambda m, x: (m(x) ** 2).sum(), mine, X)
    x = torch.tensor(X, requires_grad=hook_inputs)
    (theirs(x) ** 2).sum().backward()
    return [p.grad for p in mine.parameters()], [p.grad for p in theirs.parameters()]


def same(mine, theirs):
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(np.asarray(a), b.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "install",
    [
        lambda m: m[2].register_full_backward_hook(lambda mod, gi, go: (gi[0] * 2,)),
        lambda m: m[2].register_full_backward_hook(lambda mod, gi, go: (gi[0] + go[0].sum(),)),
        lambda m: m[2].register_full_backward_pre_hook(lambda mod, go: (go[0] * 3,)),
        lambda m: m[1].register_full_backward_pre_hook(lambda mod, go: (go[0] * -1,)),
        lambda m: (
            m[2].register_full_backward_hook(lambda mod, gi, go: (gi[0] * 2,)),
            m[2].register_full_backward_hook(lambda mod, gi, go: (gi[0] + 1,), prepend=True),
        ),
        lambda m: m[0].register_full_backward_hook(lambda mod, gi, go: None),
        lambda m: m.register_full_backward_pre_hook(lambda mod, go: (go[0] * 0.5,)),
        lambda m: m[0].weight.register_hook(lambda g: g * 10),
        lambda m: (m[0].weight.register_hook(lambda g: g * 10), m[0].weight.register_hook(lambda g: g + 1)),
        lambda m: m[2].bias.register_hook(lambda g: None),
        lambda m: m[0].bias.register_hook(lambda g: g * 0).remove(),
    ],
)
def test_gradient_hooks_change_gradients_as_in_torch(install):
    mine, theirs = pair()
    install(mine), install(theirs)
    same(*gradients(mine, theirs))


def test_full_backward_hooks_see_torchs_gradients():
    seen = {}
    mine, theirs = pair()
    for source, model in (("jnn", mine), ("torch", theirs)):
        for i, module in enumerate(model):
            module.register_full_backward_hook(
                lambda mod, gi, go, key=(source, i): seen.__setitem__(key, (tuple(gi), tuple(go))),
            )
    with jax.disable_jit():  # so that the hooks see numbers
        nn.backward(lambda m, x: (m(x) ** 2).sum(), mine, X)
    (theirs(torch.tensor(X)) ** 2).sum().backward()
    for i in range(3):
        for a, b in zip(seen["jnn", i], seen["torch", i], strict=True):
            assert [x is None for x in a] == [x is None for x in b]
            same([x for x in a if x is not None], [x for x in b if x is not None])


def test_backward_hooks_hold_in_pure_calls_under_jit_and_reverse_mode_twice():
    m = nn.Linear(3, 2)
    params, buffers = nn.split(m)
    plain = jax.grad(lambda p: jnp.sum(nn.pure(m).apply(p, buffers, X)[0] ** 2))(params)
    m.register_full_backward_pre_hook(lambda mod, go: (go[0] * 2,))
    m.weight.register_hook(lambda g: g + 1)

    def loss(p):
        return jnp.sum(nn.pure(m).apply(p, buffers, X)[0] ** 2)

    hooked = jax.jit(jax.grad(loss))(params)
    np.testing.assert_allclose(hooked["weight"], 2 * plain["weight"] + 1, rtol=1e-6)
    np.testing.assert_allclose(hooked["bias"], 2 * plain["bias"], rtol=1e-6)
    jax.grad(lambda p: sum(jnp.sum(g) for g in jax.tree.leaves(jax.grad(loss)(p))))(params)


def test_a_backward_hook_that_returns_nonsense_is_refused():
    mine, _ = pair()
    mine[2].register_full_backward_hook(lambda mod, gi, go: (gi[0][:1],))
    with pytest.raises(RuntimeError, match="Linear: a backward hook must return None or as many gradients of the same shapes"):
        nn.backward(lambda m, x: m(x).sum(), mine, X)


def test_post_accumulate_hooks_see_the_accumulated_gradient():
    mine, theirs = pair()
    seen = []
    for model in (mine, theirs):
        model[0].bias.register_post_accumulate_grad_hook(lambda p: seen.append(np.asarray(p.grad).copy()))
    for _ in range(2):
        gradients(mine, theirs)
    np.testing.assert_allclose(seen[0], seen[1], rtol=1e-5)
    np.testing.assert_allclose(seen[2], 2 * seen[0], rtol=1e-5)


def test_hooks_of_all_modules():
    import torch.nn.modules.module as torch_hooks

    seen = {"jnn": [], "torch": []}
    for name, source in (("jnn", jnn_hooks), ("torch", torch_hooks)):
        model = dict(zip(("jnn", "torch"), pair(), strict=True))[name]
        log = seen[name]
        handles = [
            source.register_module_forward_pre_hook(lambda m, a, log=log: log.append(("pre", type(m).__name__))),
            source.register_module_forward_hook(lambda m, a, out, log=log: log.append(("post", type(m).__name__))),
        ]
        model[0].register_forward_pre_hook(lambda m, a, log=log: log.append(("own", type(m).__name__)))
        model(X if name == "jnn" else torch.tensor(X))
        for handle in handles:
            handle.remove()
        model(X if name == "jnn" else torch.tensor(X))
    assert seen["jnn"] == seen["torch"]
    assert len(seen["jnn"]) == 10


def test_hooks_of_all_modules_on_gradients():
    import torch.nn.modules.module as torch_hooks

    mine, theirs = pair()
    handles = [
        source.register_module_full_backward_pre_hook(lambda m, go: (go[0] * 2,) if type(m).__name__ == "Tanh" else None)
        for source in (jnn_hooks, torch_hooks)
    ]
    handles += [
        source.register_module_full_backward_hook(lambda m, gi, go: (gi[0] + 1,) if type(m).__name__ == "Tanh" else None)
        for source in (jnn_hooks, torch_hooks)
    ]
    same(*gradients(mine, theirs))
    for handle in handles:
        handle.remove()


SOURCES = pytest.mark.parametrize("source", [nn, torch.nn], ids=["jnn", "torch"])


@SOURCES
def test_state_dict_hooks(source):
    m = source.Sequential(source.Linear(2, 2))
    calls = []
    m[0].register_state_dict_pre_hook(lambda mod, prefix, keep: calls.append(("pre", prefix)))
    handle = m.register_state_dict_post_hook(lambda mod, state, prefix, meta: state.update(extra=state["0.bias"]))
    state = m.state_dict()
    assert calls == [("pre", "0.")]
    assert [*state] == ["0.weight", "0.bias", "extra"]
    assert state._metadata[""] == {"version": 1}
    handle.remove()
    m.register_load_state_dict_pre_hook(lambda mod, state, prefix, meta, strict, missing, unexpected, errors: state.pop("extra", None))
    m.register_load_state_dict_post_hook(lambda mod, keys: calls.append(("post", list(keys.missing_keys))))
    m.load_state_dict(state)
    assert calls[-1] == ("post", [])
    del state["0.bias"]
    m[0].register_load_state_dict_post_hook(lambda mod, keys: keys.missing_keys.clear())
    m.load_state_dict(state)
    m.register_state_dict_post_hook(lambda *a: 1)
    with pytest.raises(RuntimeError):
        m.state_dict()
    m[0].register_load_state_dict_post_hook(lambda mod, keys: 1)
    with pytest.raises(AssertionError):
        m.load_state_dict(state)


@SOURCES
def test_private_state_dict_hooks_that_old_code_uses(source):
    m = source.Linear(2, 2)
    m._register_state_dict_hook(lambda mod, state, prefix, meta: {"renamed": state["weight"]})
    assert [*m.state_dict()] == ["renamed"]
    other = source.Linear(2, 2)

    def rename(state, prefix, *rest):
        state[f"{prefix}weight"], state[f"{prefix}bias"] = state.pop("w"), state.pop("b")

    other._register_load_state_dict_pre_hook(rename)
    given = source.Linear(2, 2).state_dict()
    other.load_state_dict({"w": given["weight"], "b": given["bias"]})
    np.testing.assert_array_equal(np.asarray(other.weight.detach()), np.asarray(given["weight"]))


@SOURCES
def test_extra_state_and_overrides(source):
    class Counter(source.Module):
        def __init__(self):
            super().__init__()
            self.count = 0
            self.inner = source.Linear(2, 2)

        def get_extra_state(self):
            return {"count": self.count}

        def set_extra_state(self, state):
            self.count = state["count"]

    a, b = Counter(), Counter()
    a.count = 7
    state = a.state_dict()
    assert [*state] == ["_extra_state", "inner.weight", "inner.bias"]
    b.load_state_dict(state)
    assert b.count == 7
    del state["_extra_state"]
    assert b.load_state_dict(state, strict=False).missing_keys == ["_extra_state"]
    with pytest.raises(RuntimeError):
        source.Linear(2, 2).get_extra_state()
    keys = source.Linear(2, 2).load_state_dict({"_extra_state": 1}, strict=False)
    assert (keys.missing_keys, keys.unexpected_keys) == (["weight", "bias"], ["_extra_state"])


@SOURCES
def test_an_override_of_loading_is_used(source):
    class Renamed(source.Linear):
        def _load_from_state_dict(self, state_dict, prefix, *rest):
            if prefix + "kernel" in state_dict:
                state_dict[prefix + "weight"] = state_dict.pop(prefix + "kernel")
            super()._load_from_state_dict(state_dict, prefix, *rest)

    m = Renamed(2, 2)
    given = source.Linear(2, 2).state_dict()
    m.load_state_dict({"kernel": given["weight"], "bias": given["bias"]})
    np.testing.assert_array_equal(np.asarray(m.weight.detach()), np.asarray(given["weight"]))


@SOURCES
def test_submodules_by_path(source):
    m = source.Sequential(source.Sequential(source.Linear(2, 2), source.ReLU()))
    assert m.get_submodule("0.1") is m[0][1]
    assert m.get_submodule("") is m
    assert m.get_parameter("0.0.weight") is m[0][0].weight
    m.set_submodule("0.1", source.Tanh())
    assert isinstance(m[0][1], source.Tanh)
    m.set_submodule("0.new", source.Identity())
    assert [*dict(m[0].named_children())] == ["0", "1", "new"]
    for call, error in (
        (lambda: m.get_submodule("0.9"), AttributeError),
        (lambda: m.get_submodule("0.0.weight"), AttributeError),
        (lambda: m.get_parameter("0.0.none"), AttributeError),
        (lambda: m.get_buffer("0.0.weight"), AttributeError),
        (lambda: m.set_submodule("", source.Tanh()), ValueError),
        (lambda: m.set_submodule("0.1", 3), ValueError),
        (lambda: m.set_submodule("0.nope", source.Tanh(), strict=True), AttributeError),
        (lambda: m.set_submodule("0.0.weight", source.Tanh()), AttributeError),
    ):
        with pytest.raises(error):
            call()


@SOURCES
def test_names_of_odd_kinds(source):
    m = source.Module()
    m.add_module("x", None)
    assert [*m.named_children()] == []
    m.register_module("y", source.Identity())
    assert "y" in dir(m)
    with pytest.raises(TypeError):
        m.add_module("z", 3)
    with pytest.raises((TypeError, KeyError)):
        m.add_module(3, source.Identity())
    buffers = dict(source.BatchNorm1d(2).named_buffers())
    assert [*buffers] == ["running_mean", "running_var", "num_batches_tracked"]


def test_compile_makes_one_program_and_keeps_buffers_current():
    m = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    traces = []
    m[0].register_forward_hook(lambda *a: traces.append(1))
    expected = copy.deepcopy(m).eval()(X)
    traces.clear()
    m.eval().compile()
    np.testing.assert_allclose(m(X), expected, rtol=1e-6)
    m(X)
    assert len(traces) == 1
    m.train()
    m(X), m(X)
    assert len(traces) == 2
    assert int(m[1].num_batches_tracked) == 2
    params, buffers = nn.split(m)
    assert nn.pure(m).apply(params, buffers, X)[0].shape == (2, 4)
    assert pickle.loads(pickle.dumps(nn.Linear(2, 2))).weight.shape == (2, 2)


def test_devices_and_dtypes():
    m = nn.Linear(2, 2)
    assert m.type(jnp.bfloat16).weight.dtype == jnp.bfloat16
    assert m.cpu().half().weight.dtype == jnp.float16
    with pytest.raises(RuntimeError, match="Linear: no such device here, got device='cuda:0'"):
        m.cuda()
    with pytest.raises(RuntimeError, match="device='xpu'"):
        m.xpu()
    abstract = nn.Linear(2, 2, device="meta").to_empty(device="cpu")
    assert not np.asarray(abstract.weight).any()
    abstract.reset_parameters()
    assert np.asarray(abstract.weight).any()
    assert m.share_memory() is m


@SOURCES
def test_factory_kwargs_and_the_old_container(source):
    assert source.factory_kwargs({"dtype": "x", "factory_kwargs": {"device": None}}) == {"dtype": "x", "device": None}
    assert source.factory_kwargs(None) == {}
    for bad in ({"bias": True}, {"dtype": 1, "factory_kwargs": {"dtype": 2}}):
        with pytest.raises(TypeError):
            source.factory_kwargs(bad)
    with pytest.warns(FutureWarning):
        assert [*source.Container(a=source.Identity()).state_dict()] == []
