"""Runs that move between torch and jnn: SGD, Adam and AdamW with their states, both ways."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest
import torch

import jnn as nn
import jnn.functional as F
from jnn import io
from jnn.io import CheckpointError

X = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
Y = np.arange(8) % 2


def mlp(source):
    return source.Sequential(source.Linear(3, 5), source.Tanh(), source.Linear(5, 2))


def by_names(params):
    params = list(params)
    return [{"params": params[1:3], "lr": 0.05}, {"params": [params[0], params[3]], "weight_decay": 0.1}]


OPTIMIZERS = {
    "plain": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, 0.01, betas=(0.8, 0.99), eps=1e-6),
    "adam with decay": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.2),
    "groups": lambda p: torch.optim.AdamW(by_names(p), 0.01),
    "groups of sgd": lambda p: torch.optim.SGD(by_names(p), 0.1, momentum=0.5),
}
ORDER = ["0.bias", "2.weight", "0.weight", "2.bias"]


class TorchRun:
    def __init__(self, make, weights=None, state=None):
        self.model = mlp(torch.nn)
        self.optimizer = make(self.model.parameters())
        if weights is not None:
            self.model.load_state_dict(weights)
            self.optimizer.load_state_dict(state)

    def step(self):
        self.optimizer.zero_grad()
        torch.nn.functional.cross_entropy(self.model(torch.tensor(X)), torch.tensor(Y)).backward()
        self.optimizer.step()


def assert_close(mine, theirs):
    for name, value in theirs.state_dict().items():
        # Sums in another order, over a few steps.
        np.testing.assert_allclose(mine.state_dict()[name], value.numpy(), rtol=2e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_from_torch_and_back(tmp_path, name):
    make, path = OPTIMIZERS[name], tmp_path / "run.pt"
    theirs = TorchRun(make)
    for _ in range(3):
        theirs.step()
    torch.save({"model": theirs.model.state_dict(), "optimizer": theirs.optimizer.state_dict()}, path)

    mine, saved = mlp(nn), io.load(path)
    io.load_into(mine, saved, prefix="model.")
    names = ORDER if name.startswith("groups") else None
    optimizer = nn.optim.Optimizer(mine, io.optax_from_torch(saved["optimizer"], names or mine))
    io.load_torch_optimizer(optimizer, saved["optimizer"], names)
    step = nn.train_step(lambda model, x, y: F.cross_entropy(model(x), y), optimizer)
    for _ in range(3):
        theirs.step(), step(X, Y)
    assert_close(mine, theirs.model)

    state = io.torch_optimizer_state(optimizer, saved["optimizer"]["param_groups"], names)
    io.save({"model": mine.state_dict(), "optimizer": state}, path)
    again = torch.load(path, weights_only=True)
    back = TorchRun(make, again["model"], again["optimizer"])
    for _ in range(3):
        back.step(), step(X, Y)
    assert_close(mine, back.model)


def test_names_that_torch_has_saved(tmp_path):
    theirs = TorchRun(lambda p: None)
    theirs.optimizer = torch.optim.Adam(reversed([*theirs.model.named_parameters()]))
    theirs.step()
    torch.save(theirs.optimizer.state_dict(), tmp_path / "o.pt")
    saved, mine = io.load(tmp_path / "o.pt"), mlp(nn)
    optimizer = nn.optim.Optimizer(mine, optax.adam(1e-3))
    io.load_torch_optimizer(optimizer, saved)
    np.testing.assert_array_equal(optimizer.state_dict()["[0].mu['0.weight']"], theirs.optimizer.state[theirs.model[0].weight]["exp_avg"])


def test_pure_states_nested_and_in_larger_transformations():
    theirs = TorchRun(OPTIMIZERS["adam"])
    theirs.step(), theirs.step()
    params, _ = nn.split(mlp(nn))
    names = [name for name, _ in theirs.model.named_parameters()]
    transform = optax.chain(optax.clip_by_global_norm(1.0), optax.inject_hyperparams(optax.adamw)(optax.linear_schedule(1.0, 0.0, 9)))
    state_dict = numpy_state(theirs.optimizer)
    state = io.optax_state_from_torch(transform.init(params), state_dict, names)
    inner = state[1]
    assert int(inner.count) == int(inner.inner_state[0].count) == 2
    np.testing.assert_array_equal(inner.inner_state[0].nu["2"]["bias"], state_dict["state"][3]["exp_avg_sq"])
    back = io.optax_state_to_torch(state, state_dict["param_groups"], names)
    assert back["state"].keys() == state_dict["state"].keys()
    for number, entry in state_dict["state"].items():
        jax.tree.map(np.testing.assert_array_equal, back["state"][number], dict(entry))
    assert back["param_groups"] == state_dict["param_groups"]


def numpy_state(optimizer):
    return jax.tree.map(lambda x: x.numpy() if isinstance(x, torch.Tensor) else x, optimizer.state_dict())


def test_frozen_parameters_have_no_state():
    theirs, mine = TorchRun(lambda p: None), mlp(nn)
    theirs.model[0].weight.requires_grad_(False), mine[0].weight.requires_grad_(False)
    theirs.optimizer = torch.optim.Adam(theirs.model.parameters())
    theirs.step()
    optimizer = nn.optim.Optimizer(mine, optax.adam(1e-3))
    io.load_torch_optimizer(optimizer, numpy_state(theirs.optimizer))
    np.testing.assert_array_equal(optimizer.state_dict()["[0].mu['0.bias']"], theirs.optimizer.state[theirs.model[0].bias]["exp_avg"])
    assert io.torch_optimizer_state(optimizer, theirs.optimizer.state_dict()["param_groups"])["state"].keys() == {1, 2, 3}


def adam_state(steps=2, **settings):
    run = TorchRun(lambda p: torch.optim.Adam(p, **settings))
    for _ in range(steps):
        run.step()
    return numpy_state(run.optimizer)


def test_a_fresh_state_is_a_fresh_state():
    optimizer = nn.optim.Optimizer(mlp(nn), optax.adam(1e-3))
    before = optimizer.state_dict()
    io.load_torch_optimizer(optimizer, adam_state(0))
    jax.tree.map(np.testing.assert_array_equal, optimizer.state_dict(), before)


def sgd_state():
    run = TorchRun(OPTIMIZERS["momentum"])
    run.step()
    return numpy_state(run.optimizer)


def without(state, number, slot=None):
    if slot is None:
        del state["state"][number]
    else:
        state["state"][number] = {k: v for k, v in state["state"][number].items() if k != slot}
    return state


def stepped(state):
    state["state"][1] = {**state["state"][1], "step": np.float32(7)}
    return state


@pytest.mark.parametrize(
    ("transform", "state", "match"),
    [
        (optax.adam(1e-3), sgd_state, r"optax_state_from_torch: torch's state does not tell the step"),
        (optax.sgd(0.1), adam_state, "the transformation has no place for what torch keeps"),
        (optax.sgd(0.1, momentum=0.9), adam_state, "torch's state lacks what the transformation keeps, got trace='0.bias'"),
        (optax.adam(1e-3), lambda: adam_state(amsgrad=True), "has no place for what torch keeps, got lost=.*max_exp_avg_sq of 0.bias"),
        (optax.amsgrad(1e-3), lambda: adam_state(amsgrad=True), "torch's state lacks what the transformation keeps, got nu_max='0.bias'"),
        (optax.adam(1e-3), lambda: without(adam_state(), 2), "torch's state lacks what the transformation keeps, got mu='2.weight'"),
        (optax.adam(1e-3), lambda: without(adam_state(), 2, "exp_avg_sq"), "torch's state lacks what the transformation keeps, got nu="),
        (optax.adam(1e-3), lambda: stepped(adam_state()), r"all parameters must be at one step, got steps=\(2, 7\)"),
        (optax.adam(1e-3), lambda: {"state": {}}, "this must be the state_dict of a torch optimizer"),
        (optax.adam(1e-3), lambda: adam_state() | {"param_groups": [{"params": [0, 1]}]}, "there must be a name for each parameter"),
        (optax.adam(1e-3), lambda: adam_state() | {"state": {9: {}}}, "the state must be of the parameters in the groups"),
        (
            optax.sgd(optax.linear_schedule(1, 0, 3), momentum=0.9),
            sgd_state,
            "does not tell the step that this transformation counts; pass step=",
        ),
    ],
)
def test_states_that_do_not_fit_are_refused(transform, state, match):
    optimizer = nn.optim.Optimizer(mlp(nn), transform)
    before = optimizer.state_dict()
    with pytest.raises(CheckpointError, match=match):
        io.load_torch_optimizer(optimizer, state())
    jax.tree.map(np.testing.assert_array_equal, optimizer.state_dict(), before)


def test_a_schedule_over_sgd_takes_the_step_from_the_caller():
    optimizer = nn.optim.Optimizer(mlp(nn), optax.sgd(optax.linear_schedule(1, 0, 3), momentum=0.9))
    io.load_torch_optimizer(optimizer, sgd_state(), step=5)
    assert optimizer.state_dict()["[1].count"] == 5


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, dampening=0.5), "dampening has no counterpart"),
        (lambda p: torch.optim.Adam(p, amsgrad=True), "amsgrad has no counterpart"),
        (lambda p: torch.optim.Adam(p, maximize=True), "maximize=True has no counterpart"),
        (lambda p: torch.optim.RMSprop(p), "only SGD, Adam and AdamW have counterparts"),
        (lambda p: torch.optim.NAdam(p), "only SGD, Adam and AdamW have counterparts"),
        (lambda p: torch.optim.AdamW(by_names(p)), "with several groups, pass the parameters' names"),
    ],
)
def test_optimizers_without_counterpart(make, match):
    model = mlp(torch.nn)
    with pytest.raises(CheckpointError, match=match):
        io.optax_from_torch(make(model.parameters()).state_dict(), mlp(nn))


def test_old_states_that_do_not_tell_adam_from_adamw():
    state = torch.optim.Adam(mlp(torch.nn).parameters(), weight_decay=0.1).state_dict()
    del state["param_groups"][0]["decoupled_weight_decay"]
    with pytest.raises(CheckpointError, match="Adam with weight decay, or AdamW"):
        io.optax_from_torch(state, mlp(nn))


def test_what_torch_has_no_place_for():
    groups = torch.optim.Adam(mlp(torch.nn).parameters()).state_dict()["param_groups"]
    optimizer = nn.optim.Optimizer(mlp(nn), optax.amsgrad(1e-3))
    with pytest.raises(
        CheckpointError, match="optax_state_to_torch: torch has no counterpart of what the transformation keeps, got nu_max="
    ):
        io.torch_optimizer_state(optimizer, groups)
