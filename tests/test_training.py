"""value_and_grad, backward, Optimizer and train_step: torch's numbers, one compilation, nothing stale, nothing deleted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import jnn as nn
import jnn.functional as F


def ones(shape):
    return jnp.ones(shape, jnp.float32)


X = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 2, 8)


def mlp(source):
    return source.Sequential(source.Linear(3, 5, bias=False), source.BatchNorm1d(5), source.ReLU(), source.Linear(5, 2))


def pair():
    theirs, mine = mlp(torch.nn), mlp(nn)
    mine.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    return mine, theirs


def loss_fn(model, x, y):
    return F.cross_entropy(model(x), y)


def torch_loss(model, x=X, y=Y):
    return torch.nn.functional.cross_entropy(model(torch.tensor(x)), torch.tensor(y))


def close(mine, theirs, rtol=1e-4):
    for name, value in theirs.state_dict().items():
        np.testing.assert_allclose(np.asarray(mine.state_dict()[name]), value.numpy(), rtol=rtol, atol=1e-5, err_msg=name)


class Counted:
    """A loss that counts its traces."""

    def __init__(self):
        self.traces = 0

    def __call__(self, model, x, y):
        self.traces += 1
        return loss_fn(model, x, y)

    __name__ = "counted"


def test_backward_accumulates_as_torch_does():
    mine, theirs = pair()
    for _ in range(2):
        loss = nn.backward(loss_fn, mine, X, Y)
        expected = torch_loss(theirs)
        expected.backward()
        np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    for (name, p), q in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(p.grad, q.grad, rtol=1e-4, atol=1e-5, err_msg=name)
    close(mine, theirs)  # running statistics moved twice
    mine.zero_grad(set_to_none=False)
    assert not np.asarray(mine[0].weight.grad).any()
    mine.zero_grad()
    assert mine[0].weight.grad is None


def test_value_and_grad_gives_a_tree_like_params():
    mine, theirs = pair()
    loss, grads = nn.value_and_grad(loss_fn)(mine, X, Y)
    assert jax.tree.structure(grads) == jax.tree.structure(nn.split(mine)[0])
    torch_loss(theirs).backward()
    np.testing.assert_allclose(grads["0"]["weight"], theirs[0].weight.grad, rtol=1e-4, atol=1e-6)
    (loss2, aux), _ = nn.value_and_grad(lambda m, x, y: (loss_fn(m, x, y), m(x)), has_aux=True)(mine, X, Y)
    np.testing.assert_allclose(loss, loss2, rtol=1e-6)
    assert aux.shape == (8, 2)


@pytest.mark.parametrize("style", ["step", "backward", "value_and_grad"])
@pytest.mark.parametrize(
    ("ours", "theirs_optimizer"),
    [
        (optax.sgd(0.1), lambda p: torch.optim.SGD(p, 0.1)),
        (optax.sgd(0.1, momentum=0.9), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
        (optax.adam(0.01), lambda p: torch.optim.Adam(p, 0.01)),
    ],
    ids=["sgd", "momentum", "adam"],
)
def test_training_follows_torch(style, ours, theirs_optimizer):
    mine, theirs = pair()
    optimizer = nn.optim.Optimizer(mine, ours)
    step = nn.train_step(loss_fn, optimizer)
    reference = theirs_optimizer(theirs.parameters())
    for _ in range(5):
        if style == "step":
            loss = step(X, Y)
        elif style == "backward":
            optimizer.zero_grad()
            loss = nn.backward(loss_fn, mine, X, Y)
            optimizer.step()
        else:
            loss, grads = nn.value_and_grad(loss_fn)(mine, X, Y)
            optimizer.step(grads)
        reference.zero_grad()
        expected = torch_loss(theirs)
        expected.backward()
        reference.step()
        np.testing.assert_allclose(loss, expected.item(), rtol=1e-4)
    close(mine, theirs, 1e-3)


def test_one_trace_for_each_structure():
    model, counted = mlp(nn), Counted()
    step = nn.train_step(counted, nn.optim.Optimizer(model, optax.sgd(0.1)))
    step(X, Y), step(X, Y)
    assert counted.traces == 1
    step(X[:4], Y[:4])
    assert counted.traces == 2
    model.eval(), model.train()
    step(X, Y)
    assert counted.traces == 2


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.eval(),
        lambda m: m[0].register_forward_hook(lambda *a: None),
        lambda m: setattr(m[1], "momentum", 0.5),
        lambda m: m.append(nn.Identity()),
        lambda m: m[0].requires_grad_(False),
        lambda m: m.__setitem__(2, nn.Tanh()),
        lambda m: setattr(m[3], "bias", None),
        lambda m: setattr(m, "note", [1]),
    ],
    ids=["eval", "hook", "config", "append", "freeze", "replace", "drop bias", "attribute"],
)
def test_an_edited_module_is_noticed(edit):
    model, counted = mlp(nn), Counted()
    evaluate = nn.value_and_grad(counted)
    evaluate(model, X, Y)
    edit(model)
    evaluate(model, X, Y), evaluate(model, X, Y)
    assert counted.traces == 2


def test_a_list_edited_in_place_is_noticed():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.factors = [1.0]
            self.w = nn.Parameter(jnp.ones(()))

        def forward(self, x):
            return self.w * sum(self.factors) * x

    model = Net()
    evaluate = nn.value_and_grad(lambda m, x: m(x))
    assert evaluate(model, 1.0)[0] == 1
    model.factors.append(2.0)
    assert evaluate(model, 1.0)[0] == 3


def test_a_lambda_in_a_loop_compiles_once():
    model, traces = mlp(nn), []
    for _ in range(3):
        nn.backward(lambda m, x, y: (traces.append(1), loss_fn(m, x, y))[1], model, X, Y)
    assert len(traces) == 1


def test_modules_that_a_loss_closes_over_are_noticed():
    model = mlp(nn).eval()
    criterion = nn.CrossEntropyLoss(weight=jnp.array([1.0, 2.0], jnp.float32))
    teacher = nn.Linear(3, 2)

    def loss(m, x, y):
        return criterion(m(x) + teacher(x), y)

    first = nn.value_and_grad(loss)(model, X, Y)[0]
    assert nn.value_and_grad(loss)(model, X, Y)[0] == first
    criterion.weight.data.fill_(1.0)
    second = nn.value_and_grad(loss)(model, X, Y)[0]
    assert second != first
    teacher.weight.data.zero_()
    assert nn.value_and_grad(loss)(model, X, Y)[0] != second


def test_nothing_held_is_deleted_by_a_donating_step():
    model = mlp(nn)
    optimizer = nn.optim.Optimizer(model, optax.adam(0.1))
    step = nn.train_step(loss_fn, optimizer)
    step(X, Y)
    held = [model.state_dict()["0.weight"], nn.split(model)[0]["0"]["weight"], model[0].weight.detach(), jnp.asarray(model[0].weight)]
    state = optimizer.state_dict()
    for _ in range(2):
        step(X, Y)
    for array in held:
        np.testing.assert_array_equal(array, held[0])
    optimizer.load_state_dict(state)
    step(X, Y)


def test_frozen_parameters_stay_and_return():
    model = mlp(nn)
    optimizer = nn.optim.Optimizer(model, optax.sgd(0.1, momentum=0.9))
    step = nn.train_step(loss_fn, optimizer)
    step(X, Y)
    model[0].requires_grad_(False)
    before = np.asarray(model[0].weight).copy()
    step(X, Y)
    np.testing.assert_array_equal(model[0].weight, before)
    model[0].requires_grad_(True)
    step(X, Y)
    assert not np.array_equal(model[0].weight, before)


def test_parameters_without_gradients_are_left_alone_as_in_torch():
    mine, theirs = pair()
    optimizer = nn.optim.Optimizer(mine, optax.sgd(0.1, momentum=0.9))
    reference = torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9)
    for skip in (False, True, False):
        optimizer.zero_grad(), reference.zero_grad()
        nn.backward(loss_fn, mine, X, Y)
        torch_loss(theirs).backward()
        if skip:
            mine[0].weight.grad = theirs[0].weight.grad = None
        optimizer.step(), reference.step()
    close(mine, theirs, 1e-3)


def test_groups_by_name():
    model = mlp(nn)
    optimizer = nn.optim.Optimizer(model, {"0.*": optax.set_to_zero(), "*": optax.sgd(0.1)})
    before = {k: np.asarray(v).copy() for k, v in model.state_dict().items()}
    nn.train_step(loss_fn, optimizer)(X, Y)
    after = model.state_dict()
    np.testing.assert_array_equal(after["0.weight"], before["0.weight"])
    assert not np.array_equal(after["3.weight"], before["3.weight"])
    with pytest.raises(ValueError, match="Optimizer: every trained parameter must match a group, got name='1.weight'"):
        nn.optim.Optimizer(model, {"0.*": optax.sgd(0.1)})


def test_optimizer_state_resumes_exactly():
    model = mlp(nn)
    optimizer = nn.optim.Optimizer(model, optax.adam(0.05))
    step = nn.train_step(loss_fn, optimizer)
    step(X, Y)
    weights, state = {k: np.asarray(v) for k, v in model.state_dict().items()}, optimizer.state_dict()
    expected = [float(step(X, Y)) for _ in range(3)]
    other = mlp(nn)
    other.load_state_dict(weights)
    resumed = nn.optim.Optimizer(other, optax.adam(0.05))
    resumed.load_state_dict(state)
    step = nn.train_step(loss_fn, resumed)
    assert [float(step(X, Y)) for _ in range(3)] == expected
    with pytest.raises(RuntimeError, match="Optimizer: the state does not fit: missing"):
        resumed.load_state_dict({})


def test_dropout_differs_by_step_and_repeats_by_seed():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2))
    evaluate = nn.value_and_grad(loss_fn)

    def losses():
        nn.manual_seed(1)
        return [float(evaluate(model, X, Y)[0]) for _ in range(3)]

    first = losses()
    assert len(set(first)) == 3
    assert losses() == first


def test_clear_words_for_wrong_losses():
    with pytest.raises(TypeError, match="the loss must be a scalar array"):
        nn.value_and_grad(lambda m, x: m(x))(mlp(nn), X)
    with pytest.raises(TypeError, match=r"must return \(loss, aux\)"):
        nn.value_and_grad(lambda m, x: m(x).sum(), has_aux=True)(mlp(nn), X)
    with pytest.raises(TypeError, match="backward: the first argument after the function must be a Module"):
        nn.backward(loss_fn, X, Y)
    with pytest.raises(TypeError, match="Optimizer: transform must be an optax transformation"):
        nn.optim.Optimizer(mlp(nn), 0.1)
