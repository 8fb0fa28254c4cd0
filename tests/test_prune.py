"""Pruning, side by side with torch, and through compiled and differentiated calls."""

from __future__ import annotations

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.utils.prune as theirs

import jnn as nn
from jnn.utils import prune as mine

W = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
KERNEL = np.random.default_rng(1).standard_normal((4, 3, 2, 2)).astype(np.float32)
SCORES = np.random.default_rng(2).standard_normal((4, 6)).astype(np.float32)
MASK = (np.arange(24).reshape(4, 6) % 3 > 0).astype(np.float32)


class Side:
    """One of the two libraries, with what a body needs to be written once."""

    def __init__(self, nn, prune, array, numpy):
        self.nn, self.prune, self.array, self.numpy = nn, prune, array, numpy

    def linear(self):
        return self.load(self.nn.Linear(6, 4), weight=W, bias=np.arange(1, 5, dtype=np.float32))

    def conv(self):
        return self.load(self.nn.Conv2d(3, 4, 2), weight=KERNEL, bias=np.ones(4, np.float32))

    def load(self, module, **arrays):
        module.load_state_dict({name: self.array(a) for name, a in arrays.items()})
        return module


SIDES = (Side(nn, mine, jnp.asarray, np.asarray), Side(torch.nn, theirs, torch.tensor, lambda t: t.detach().numpy()))


def observe(see):
    """What a body gives on each side, a value or the type of an error."""

    def attempt(side):
        try:
            return see(side)
        except Exception as error:
            return type(error)

    return [attempt(side) for side in SIDES]


def everything(s, module, name="weight"):
    """What there is to see of a pruned module: its names in order, values and hooks."""
    return {
        "state": {k: s.numpy(v) for k, v in module.state_dict().items()},
        "parameters": [n for n, _ in module.named_parameters()],
        "buffers": {n: s.numpy(b) for n, b in module.named_buffers()},
        "value": s.numpy(getattr(module, name)),
        "pruned": s.prune.is_pruned(module),
        "hooks": len(module._forward_pre_hooks),
        "repr": repr(module),
        "type": type(module).__name__,
        "trained": [p.requires_grad for p in module.parameters()],
    }


def pruned(method, *args, layer="linear", **kwargs):
    return lambda s: everything(s, getattr(s.prune, method)(getattr(s, layer)(), "weight", *args, **kwargs))


def scored(method, *args, **kwargs):
    return lambda s: everything(s, getattr(s.prune, method)(s.linear(), "weight", *args, importance_scores=s.array(SCORES), **kwargs))


def chain(*steps, layer="linear"):
    """Several prunings of one weight, one after another."""

    def see(s):
        module = getattr(s, layer)()
        for method, *args in steps:
            getattr(s.prune, method)(module, "weight", *[s.array(a) if isinstance(a, np.ndarray) else a for a in args])
        (hook,) = module._forward_pre_hooks.values()
        hook = getattr(hook, "call", hook)
        return everything(s, module), len(hook), [type(m).__name__ for m in hook], type(hook).__name__, hook._tensor_name

    return see


def removed(s):
    module = s.prune.l1_unstructured(s.linear(), "weight", 0.5)
    s.prune.remove(module, "weight")
    return everything(s, module)


def forward(s):
    module = s.prune.ln_structured(s.linear(), "weight", 2, 1, 0)
    return s.numpy(module(s.array(SCORES)))


def stale(s):
    """A loaded original shows at the next call."""
    module = s.prune.l1_unstructured(s.linear(), "weight", 12)
    module.load_state_dict({k: v * 2 for k, v in module.state_dict().items() if k != "weight_mask"}, strict=False)
    return s.numpy(module(s.array(SCORES))), s.numpy(module.weight)


def over_all(s, **kwargs):
    net = s.nn.Sequential(s.linear(), s.nn.ReLU(), s.conv())
    pairs = ((net[0], "weight"), (net[2], "weight"), (net[0], "bias"))
    s.prune.global_unstructured(pairs, pruning_method=s.prune.L1Unstructured, **kwargs)
    return {k: s.numpy(v) for k, v in net.state_dict().items()}


def over_all_again(s):
    net = s.nn.Sequential(s.linear(), s.linear())
    s.prune.l1_unstructured(net[0], "weight", 5)
    for _ in range(2):
        s.prune.global_unstructured([(m, "weight") for m in net], s.prune.L1Unstructured, amount=0.25)
    return {k: s.numpy(v) for k, v in net.state_dict().items()}


def over_all_scored(s):
    net = s.nn.Sequential(s.linear(), s.linear())
    scores = {(net[1], "weight"): s.array(SCORES * 10)}
    s.prune.global_unstructured([(m, "weight") for m in net], s.prune.L1Unstructured, importance_scores=scores, amount=20)
    return {k: s.numpy(v) for k, v in net.state_dict().items()}


def moved(s):
    """The mask loads with the rest; in torch it shows at the next call."""
    module = s.prune.l1_unstructured(s.linear(), "weight", 3)
    other = s.prune.identity(s.linear(), "weight")
    other.load_state_dict(module.state_dict())
    other(s.array(SCORES))
    return everything(s, other)


def cast(s):
    module = s.prune.l1_unstructured(s.linear(), "weight", 3).double()
    module(s.array(SCORES.astype(np.float64)))
    return everything(s, module), str(module.weight.dtype).split(".")[-1]


def counted(s, method, *args):
    """How much a random method leaves, and of what channels."""
    module = getattr(s.prune, method)(s.linear(), "weight", *args)
    mask = s.numpy(module.weight_mask)
    return mask.sum(), sorted({*mask.sum(1)}), sorted({*mask.sum(0)}) if len(args) > 1 else None, str(mask.dtype)


OBSERVATIONS = {
    "identity": pruned("identity"),
    "identity of a kernel": pruned("identity", layer="conv"),
    "l1 count": pruned("l1_unstructured", 7),
    "l1 fraction": pruned("l1_unstructured", 0.3),
    "l1 nothing": pruned("l1_unstructured", 0),
    "l1 everything": pruned("l1_unstructured", 1.0),
    "l1 one": pruned("l1_unstructured", 1),
    "l1 half rounds to even": pruned("l1_unstructured", 2.5 / 24),
    "l1 of a kernel": pruned("l1_unstructured", 0.5, layer="conv"),
    "l1 by scores": scored("l1_unstructured", 0.5),
    **{f"l{n} rows": pruned("ln_structured", 2, n, 0) for n in (0.5, 1, 2, 3, float("inf"), float("-inf"), "fro")},
    **{f"l{n} of a kernel": pruned("ln_structured", 0.5, n, 1, layer="conv") for n in (1, 2, float("inf"))},
    "ln last": pruned("ln_structured", 0.4, 2, -1),
    "ln nothing": pruned("ln_structured", 0, 2, -1),
    "ln everything": pruned("ln_structured", 1.0, 2, 0),
    "ln by scores": scored("ln_structured", 2, n=1, dim=0),
    "ln nuclear of a sequence kernel": lambda s: s.numpy(
        s.prune.ln_structured(s.load(s.nn.Conv1d(3, 4, 4, bias=False), weight=KERNEL.reshape(4, 3, 4)), "weight", 2, "nuc", 0).weight_mask
    ),
    "custom": lambda s: everything(s, s.prune.custom_from_mask(s.linear(), "weight", s.array(MASK))),
    "custom of integers": lambda s: everything(s, s.prune.custom_from_mask(s.linear(), "weight", s.array(MASK.astype(np.int32)))),
    "custom of a bias": lambda s: everything(s, s.prune.custom_from_mask(s.linear(), "bias", s.array(MASK[0, :4])), "bias"),
    "l1 twice": chain(("l1_unstructured", 5), ("l1_unstructured", 0.5)),
    "l1 three times": chain(("l1_unstructured", 5), ("l1_unstructured", 5), ("l1_unstructured", 5)),
    "l1 then channels": chain(("l1_unstructured", 5), ("ln_structured", 1, 2, 0)),
    "channels then l1": chain(("ln_structured", 2, 2, 0), ("l1_unstructured", 3)),
    "channels twice": chain(("ln_structured", 1, 1, 0), ("ln_structured", 2, 1, 0)),
    "channels both ways": chain(("ln_structured", 1, 2, 0), ("ln_structured", 0.5, 2, -1)),
    "channels of a kernel twice": chain(("ln_structured", 1, 2, 0), ("ln_structured", 1, 2, 1), layer="conv"),
    "custom then l1": chain(("custom_from_mask", MASK), ("l1_unstructured", 4)),
    "l1 then custom": chain(("l1_unstructured", 4), ("custom_from_mask", MASK)),
    "identity then l1": chain(("identity",), ("l1_unstructured", 4)),
    "remove": removed,
    "forward": forward,
    "a loaded original": stale,
    "globally by count": lambda s: over_all(s, amount=30),
    "globally by fraction": lambda s: over_all(s, amount=0.8),
    "globally nothing": lambda s: over_all(s, amount=0),
    "globally again": over_all_again,
    "globally by scores": over_all_scored,
    "a loaded mask": moved,
    "dtype": cast,
    "random count": lambda s: counted(s, "random_unstructured", 7)[0::3],
    "random fraction": lambda s: counted(s, "random_unstructured", 0.5)[0::3],
    "random rows": lambda s: counted(s, "random_structured", 2, 0),
    "random columns": lambda s: counted(s, "random_structured", 0.5, 1),
    "random nothing": lambda s: counted(s, "random_structured", 0, 1),
    "prune an array": lambda s: s.numpy(s.prune.L1Unstructured(2).prune(s.array(W[0]))),
    "prune an array further": lambda s: s.numpy(s.prune.L1Unstructured(2).prune(s.array(W[0]), default_mask=s.array(MASK[0]))),
    "prune an array by scores": lambda s: s.numpy(s.prune.LnStructured(1, 2, 0).prune(s.array(W), importance_scores=s.array(SCORES))),
    "not pruned": lambda s: (s.prune.is_pruned(s.linear()), s.prune.is_pruned(s.nn.Sequential(s.linear()))),
    "pruned inside": lambda s: s.prune.is_pruned(s.nn.Sequential(s.nn.Sequential(s.prune.identity(s.linear(), "bias")))),
    "two weights": lambda s: everything(s, s.prune.l1_unstructured(s.prune.identity(s.linear(), "bias"), "weight", 3)),
    "one removed of two": lambda s: everything(
        s, s.prune.remove(s.prune.l1_unstructured(s.prune.identity(s.linear(), "bias"), "weight", 3), "weight")
    ),
    # Errors
    "a negative count": lambda s: s.prune.L1Unstructured(-1),
    "a fraction above 1": lambda s: s.prune.RandomUnstructured(1.1),
    "a fraction below 0": lambda s: s.prune.LnStructured(-0.1, 2),
    "a text": lambda s: s.prune.RandomStructured("many"),
    "a method without a mask": lambda s: s.prune.BasePruningMethod(),
    "more than there is": pruned("l1_unstructured", 25),
    "more channels than there are": pruned("ln_structured", 7, 2, 1),
    "more than is left": chain(("l1_unstructured", 20), ("l1_unstructured", 5)),
    "channels of a vector": lambda s: s.prune.ln_structured(s.linear(), "bias", 1, 2, 0),
    "random channels of a vector": lambda s: s.prune.random_structured(s.linear(), "bias", 1, 0),
    "a dim too large": pruned("ln_structured", 1, 2, 2),
    "a dim too small": pruned("random_structured", 1, -3),
    "nuclear of a matrix": pruned("ln_structured", 1, "nuc", 0),
    "no such norm": pruned("ln_structured", 1, "abc", 0),
    "no such parameter": lambda s: s.prune.l1_unstructured(s.linear(), "nothing", 1),
    "a number": lambda s: s.prune.l1_unstructured(s.linear(), "in_features", 1),
    "a buffer": lambda s: s.prune.identity(s.nn.BatchNorm1d(2), "running_mean"),
    "None": lambda s: s.prune.identity(s.nn.Linear(2, 2, bias=False), "bias"),
    "scores of another shape": lambda s: s.prune.l1_unstructured(s.linear(), "weight", 1, importance_scores=s.array(W.T)),
    "scores of another shape for an array": lambda s: s.prune.L1Unstructured(1).prune(s.array(W), importance_scores=s.array(W.T)),
    "a mask of another shape": lambda s: s.prune.custom_from_mask(s.linear(), "weight", s.array(W.T)),
    "remove what is not pruned": lambda s: s.prune.remove(s.linear(), "weight"),
    "remove another": lambda s: s.prune.remove(s.prune.identity(s.linear(), "weight"), "bias"),
    "remove what was not applied": lambda s: s.prune.Identity().remove(s.linear()),
    "globally by channels": lambda s: s.prune.global_unstructured([(s.linear(), "weight")], s.prune.LnStructured, amount=1, n=2),
    "globally of a number": lambda s: s.prune.global_unstructured(3, s.prune.L1Unstructured, amount=1),
    "globally of nothing": lambda s: s.prune.global_unstructured([], s.prune.L1Unstructured, amount=1),
    "globally by a list of scores": lambda s: s.prune.global_unstructured(
        [(s.linear(), "weight")], s.prune.L1Unstructured, importance_scores=[1], amount=1
    ),
    "a container of another": lambda s: s.prune.PruningContainer().add_pruning_method(3),
    "an empty container": lambda s: len(s.prune.PruningContainer()),
}


@pytest.mark.parametrize("see", OBSERVATIONS.values(), ids=OBSERVATIONS)
def test_is_torchs(see):
    here, there = observe(see)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6) if isinstance(b, np.ndarray) else None, here, there)
    assert _plain(here) == _plain(there)


def _plain(seen):
    return jax.tree.map(lambda x: (x.shape, x.dtype.name) if isinstance(x, np.ndarray) else x, seen, is_leaf=lambda x: x is None)


def test_messages():
    with pytest.raises(
        ValueError, match=r"L1Unstructured: amount must be a number of units, or a fraction of them in \[0, 1\], got amount=2.5"
    ):
        mine.L1Unstructured(2.5)
    with pytest.raises(ValueError, match="Linear: only a parameter that is pruned can have its pruning removed, got name='bias'"):
        mine.remove(nn.Linear(2, 2), "bias")
    with pytest.raises(AttributeError, match="Identity: this method has not been applied"):
        mine.Identity().apply_mask(nn.Linear(2, 2))


@pytest.mark.parametrize("amount", [99, 3])
def test_a_pruning_that_fails_changes_nothing(amount):
    class Broken(mine.L1Unstructured):
        def compute_mask(self, t, default_mask):
            super().compute_mask(t, default_mask)
            raise ZeroDivisionError

    fresh, again = SIDES[0].linear(), mine.l1_unstructured(SIDES[0].linear(), "weight", 3)
    for module in (fresh, again):
        before = everything(SIDES[0], module)
        with pytest.raises((ValueError, ZeroDivisionError)):
            Broken.apply(module, "weight", amount)
        after = everything(SIDES[0], module)
        jax.tree.map(np.testing.assert_array_equal, before["state"], after["state"])
        assert (before["hooks"], before["parameters"]) == (after["hooks"], after["parameters"])


@pytest.mark.parametrize("source", SIDES, ids=["jnn", "torch"])
def test_a_users_own_method(source):
    class EveryOther(source.prune.BasePruningMethod):
        PRUNING_TYPE = "unstructured"

        def compute_mask(self, t, default_mask):
            return default_mask * source.array((np.arange(np.prod(t.shape)) % 2).reshape(tuple(t.shape)).astype(np.float32))

    module = source.linear()
    EveryOther.apply(module, "weight")
    EveryOther.apply(module, "weight")
    np.testing.assert_array_equal(source.numpy(module.weight_mask), np.arange(24).reshape(4, 6) % 4 == 3)


def test_random_methods_follow_the_seed():
    def draw(seed):
        nn.manual_seed(seed)
        module = mine.random_unstructured(SIDES[0].linear(), "weight", 0.5)
        return np.asarray(mine.random_structured(module, "weight", 1, 0).weight_mask)

    np.testing.assert_array_equal(draw(3), draw(3))
    assert (draw(3) != draw(4)).any()
    share = np.mean([draw(seed)[0].mean() for seed in range(40)])
    assert abs(share - 0.375) < 0.1


def net():
    model = nn.Sequential(SIDES[0].linear(), nn.Tanh(), nn.Linear(4, 2))
    mine.l1_unstructured(model[0], "weight", 12)
    return model


def test_gradients_reach_the_original_masked():
    model, x = net(), jnp.asarray(SCORES)
    params, buffers = nn.split(model)
    assert [*params["0"]] == ["bias", "weight_orig"]
    assert [*buffers["0"]] == ["weight_mask"]
    _, grads = nn.value_and_grad(lambda m, x: jnp.sum(m(x) ** 2))(model, x)
    mask = np.asarray(model[0].weight_mask)
    assert (np.asarray(grads["0"]["weight_orig"])[mask == 0] == 0).all()
    assert (np.asarray(grads["0"]["weight_orig"])[mask == 1] != 0).all()
    pure = nn.pure(model)
    expected = jax.grad(lambda p: jnp.sum(pure.apply(p, buffers, x)[0] ** 2))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), grads, expected)
    np.testing.assert_allclose(pure.apply(params, buffers, x)[0], model(x), rtol=1e-6)


def test_training_keeps_what_is_pruned_at_zero_and_never_traces_again():
    model, traces = net(), 0

    def loss(m, x):
        nonlocal traces
        traces += 1
        return jnp.sum(m(x) ** 2)

    step = nn.train_step(loss, nn.optim.Optimizer(model, optax.sgd(0.05)))
    before, first = np.asarray(model[0].weight), float(step(jnp.asarray(SCORES)))
    for _ in range(3):
        last = float(step(jnp.asarray(SCORES)))
        model(jnp.asarray(SCORES))
    assert traces == 1
    assert last < first
    after, mask = np.asarray(model[0].weight), np.asarray(model[0].weight_mask)
    assert (after[mask == 0] == 0).all()
    assert (after[mask == 1] != before[mask == 1]).all()
    # Pruned further, it is another program, and the optimizer goes on.
    mine.l1_unstructured(model[0], "weight", 6)
    step(jnp.asarray(SCORES))
    assert traces == 2
    assert (np.asarray(model[0].weight) == 0).sum() == 18


def test_an_assigned_value_is_forgotten_at_the_next_call():
    model = net()
    expected = model(jnp.asarray(SCORES))
    model[0].weight = jnp.zeros((4, 6))
    np.testing.assert_array_equal(model(jnp.asarray(SCORES)), expected)


def test_a_pure_pair_is_as_it_was():
    model, x = net(), jnp.asarray(SCORES)
    pure, state, expected = nn.pure(model), nn.split(model), model(x)
    mine.l1_unstructured(model[0], "weight", 6)
    np.testing.assert_allclose(pure.apply(*state, x)[0], expected, rtol=1e-6)
    params, buffers = pure.init(jax.random.key(0))
    np.testing.assert_array_equal(buffers["0"]["weight_mask"], state[1]["0"]["weight_mask"])
    assert params["0"]["weight_orig"].shape == (4, 6)


def test_inside_composites():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = jax.random.normal(jax.random.key(0), (1, 3, 8), jnp.float32)
    before = layer(x)
    mine.l1_unstructured(layer.self_attn, "in_proj_weight", 1.0)
    mine.l1_unstructured(layer.linear1, "weight", 0.5)
    assert np.abs(np.asarray(layer(x) - before)).max() > 1e-3
    lstm = nn.LSTM(3, 4)
    mine.l1_unstructured(lstm, "weight_hh_l0", 1.0)
    assert (np.asarray(lstm.all_weights[0][1]) == 0).all()
    lstm(jnp.ones((2, 1, 3), jnp.float32))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies(again):
    model = net()
    again = again(model)
    np.testing.assert_array_equal(again(jnp.asarray(SCORES)), model(jnp.asarray(SCORES)))
    mine.l1_unstructured(again[0], "weight", 6)
    assert (np.asarray(model[0].weight) == 0).sum() == 12
    mine.remove(again[0], "weight")
    assert mine.is_pruned(model)
    assert not mine.is_pruned(again)
