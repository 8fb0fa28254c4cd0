"""CTC beyond the table: impossible alignments, traced lengths, long and confident inputs, refusals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jnn.functional as F
from jnn.kernels import ctc as kernel

from .derivatives import DERIVATIVES, by_both, derivative_is_xlas


def scores(*shape, scale=1.0, seed=0):
    return scale * np.random.default_rng(seed).standard_normal(shape)


TARGETS, INPUTS, LENGTHS = np.array([[1, 1, 2], [1, 2, 0], [3, 3, 3]]), np.array([3, 6, 5]), np.array([3, 2, 1])


@pytest.mark.parametrize("zero_infinity", [False, True])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_impossible_alignments(zero_infinity, reduction):
    """1 1 2 needs four frames and has three: infinite, or 0 with no gradient."""
    log_probs = jax.nn.log_softmax(scores(6, 3, 4))
    tensor = torch.tensor(np.asarray(log_probs), requires_grad=True)
    call = {"reduction": reduction, "zero_infinity": zero_infinity}
    theirs = torch.nn.functional.ctc_loss(tensor, *map(torch.tensor, (TARGETS, INPUTS, LENGTHS)), **call)
    grad_t = torch.autograd.grad(theirs.sum(), tensor)[0].numpy()
    mine = F.ctc_loss(log_probs, TARGETS, INPUTS, LENGTHS, **call)
    grad = jax.grad(lambda x: F.ctc_loss(x, TARGETS, INPUTS, LENGTHS, **call).sum())(log_probs)
    np.testing.assert_allclose(mine, theirs.detach(), rtol=1e-9)
    np.testing.assert_allclose(grad, grad_t, rtol=1e-7, atol=1e-12)
    assert (np.asarray(grad)[3:, 0] == 0).all()
    assert (np.asarray(grad)[5:, 2] == 0).all()


def test_gradient_through_log_softmax_is_the_true_one():
    x, t = scores(5, 2, 4), jnp.array([[1, 2], [3, 3]])

    def loss(x):
        return F.ctc_loss(jax.nn.log_softmax(x), t, (5, 4), (2, 2), reduction="sum")

    direction = scores(5, 2, 4, seed=1)
    step = 1e-5
    numeric = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.vdot(jax.grad(loss)(jnp.asarray(x)), direction), numeric, rtol=1e-7)
    np.testing.assert_allclose(jax.jvp(loss, (jnp.asarray(x),), (jnp.asarray(direction),))[1], numeric, rtol=1e-7)
    hessian = jax.jvp(jax.grad(loss), (jnp.asarray(x),), (jnp.asarray(direction),))[1]
    numeric = (jax.grad(loss)(x + step * direction) - jax.grad(loss)(x - step * direction)) / (2 * step)
    np.testing.assert_allclose(hessian, numeric, rtol=1e-5, atol=1e-8)


def test_traced_lengths_joined_targets_and_tuples_agree():
    log_probs = jax.nn.log_softmax(scores(6, 3, 4))
    inputs, lengths = np.array([6, 6, 5]), np.array([3, 2, 1])
    joined = np.concatenate([row[:n] for row, n in zip(TARGETS, lengths)])
    expected = F.ctc_loss(log_probs, TARGETS, inputs, lengths, reduction="none")
    for targets in (TARGETS, joined):
        for how in (tuple, list, np.asarray):
            got = F.ctc_loss(log_probs, jnp.asarray(targets), how(inputs), how(lengths), reduction="none")
            np.testing.assert_allclose(got, expected, rtol=1e-12)
        traced = jax.jit(lambda *a: F.ctc_loss(*a, reduction="none"))(log_probs, jnp.asarray(targets), inputs, lengths)
        np.testing.assert_allclose(traced, expected, rtol=1e-12)


def test_one_program_for_all_lengths():
    traces = []

    @jax.jit
    def loss(log_probs, inputs, lengths):
        traces.append(1)
        return F.ctc_loss(log_probs, TARGETS, inputs, lengths)

    log_probs = jax.nn.log_softmax(scores(6, 3, 4))
    for inputs, lengths in [(INPUTS, LENGTHS), (INPUTS - 1, LENGTHS - 1)]:
        loss(log_probs, inputs, lengths)
    assert len(traces) == 1
    size = [len(str(jax.make_jaxpr(lambda x: F.ctc_loss(x, TARGETS, INPUTS, LENGTHS))(jnp.zeros((t, 3, 4))))) for t in (10, 1000)]
    assert size[1] - size[0] < 200


@pytest.mark.parametrize("scale", [12.0, 20.0, 40.0])
def test_a_long_confident_alignment_is_not_negative(scale):
    """Two thousand frames, each all but certain: the loss is near 0, and rounding must not take it below."""
    frames = np.zeros((2000, 1, 32), np.float32)
    path = np.where(np.arange(2000) % 7 == 0, 1 + np.arange(2000) // 7 % 31, 0)
    frames[np.arange(2000), 0, path] = scale
    log_probs = jax.nn.log_softmax(jnp.asarray(frames))
    targets = jnp.asarray(path[path > 0][None])
    call = (targets, (2000,), (targets.shape[1],))
    loss, grad = jax.value_and_grad(lambda x: F.ctc_loss(x, *call, reduction="sum"))(log_probs)
    exact = torch.nn.functional.ctc_loss(
        torch.tensor(frames).double().log_softmax(2), torch.tensor(np.asarray(targets)), *call[1:], reduction="sum"
    )
    assert loss >= 0
    np.testing.assert_allclose(loss, exact, rtol=2e-3, atol=1e-3)
    assert np.isfinite(grad).all()


def test_unnormalised_scores_may_be_negative():
    x = np.ones((4, 1, 3))
    theirs = torch.nn.functional.ctc_loss(torch.tensor(x), torch.tensor([[1]]), (4,), (1,))
    assert theirs < 0
    np.testing.assert_allclose(F.ctc_loss(jnp.asarray(x), jnp.array([[1]]), (4,), (1,)), theirs, rtol=1e-12)


def test_zero_probabilities_and_empty_targets():
    log_probs = jnp.log(jnp.array([[[0.5, 0.5, 0.0]], [[0.5, 0.25, 0.25]]]))
    grad = jax.grad(lambda x: F.ctc_loss(x, jnp.array([[1, 2]]), (2,), (2,), reduction="sum"))(log_probs)
    np.testing.assert_allclose(grad, [[[0.5, -0.5, 0]], [[0.5, 0.25, -0.75]]])
    none = F.ctc_loss(log_probs, jnp.zeros((1, 0), int), (2,), (0,), reduction="sum")
    np.testing.assert_allclose(none, -np.log(0.25), rtol=1e-6)
    np.testing.assert_array_equal(F.ctc_loss(log_probs, jnp.array([[1]]), (0,), (0,), reduction="none"), [0])
    np.testing.assert_array_equal(F.ctc_loss(log_probs, jnp.array([[1]]), (0,), (1,), reduction="none"), [np.inf])


X, Y = np.zeros((4, 2, 3)), np.array([[1, 1], [1, 2]])


@pytest.mark.parametrize(
    ("args", "error", "words"),
    [
        ((X, Y, (5, 4), (2, 2)), RuntimeError, r"input_lengths must be in \[0, 4\]"),
        ((X, Y, (4, 4), (3, 2)), RuntimeError, r"target_lengths must be in \[0, 2\]"),
        ((X, Y, (4, 4), (-1, 2)), RuntimeError, r"target_lengths must be in \[0, 2\]"),
        ((X, Y, (4,), (2, 2)), RuntimeError, "one length for each sequence"),
        ((X, Y, (4.0, 4.0), (2, 2)), RuntimeError, "must be integers"),
        ((X, Y, (4, 4), (2, 2), 3), RuntimeError, "blank must be a class"),
        ((X, Y[:1], (4, 4), (1, 1)), RuntimeError, "one row for each sequence"),
        ((X, Y[0], (4, 4), (2, 2)), RuntimeError, "targets must hold"),
        ((X, Y + 1, (4, 4), (2, 2)), IndexError, r"targets must be in \[0, 2\]"),
        ((X[:, :0], Y[:0], (), ()), RuntimeError, "must not be empty"),
        ((X[0, 0], Y[0], (4,), (2,)), RuntimeError, "log_probs must be 2D or 3D"),
        ((X[:, 0], Y, (4,), (2,)), RuntimeError, "targets must be 1D"),
    ],
)
def test_refusals(args, error, words):
    with pytest.raises(error, match=words):
        F.ctc_loss(*(jnp.asarray(a) if isinstance(a, np.ndarray) else a for a in args))


@pytest.mark.parametrize(("targets", "inputs", "lengths"), [(Y + 1, (4, 4), (2, 2)), (Y, (4, 5), (2, 2)), (Y, (4, 4), (2, 3))])
def test_traced_nonsense_gives_nan(targets, inputs, lengths):
    arrays = [jnp.asarray(a) for a in (X, targets, inputs, lengths)]
    loss = jax.jit(lambda *a: F.ctc_loss(*a, reduction="none"))(*arrays)
    np.testing.assert_array_equal(np.isnan(loss), [False, True])
    assert not np.isnan(F.ctc_loss(arrays[0], jnp.array([[1, 1], [1, 99]]), (4, 4), (2, 1))).any()


@pytest.mark.parametrize(
    ("frames", "batch", "classes", "longest"), [(1, 1, 2, 1), (7, 3, 5, 3), (20, 5, 4, 9), (60, 2, 30, 17), (70, 4, 6, 33)]
)
@pytest.mark.parametrize("blank", [0, 1])
def test_the_library_is_the_definition(frames, batch, classes, longest, blank, rng):
    labels = jnp.asarray((blank + 1 + rng.integers(0, classes - 1, (batch, longest))) % classes, jnp.int32)
    used = jnp.asarray(rng.integers(frames // 2, frames + 1, batch), jnp.int32)
    lengths = jnp.asarray(rng.integers(0, min(longest, frames // 2) + 1, batch), jnp.int32)
    for dtype, rtol in ((np.float64, 1e-11), (np.float32, 2e-4)):
        x = jax.nn.log_softmax(jnp.asarray(3 * rng.standard_normal((frames, batch, classes)), dtype))
        x = x.at[0, :, -1].set(-jnp.inf)
        g = jnp.asarray(rng.standard_normal(batch), dtype)

        def of(function, x=x, g=g):
            def run(x):
                y, pull = jax.vjp(lambda x: function(blank, x, labels, used, lengths)[0], x)
                possible = y > -1e29
                return jnp.where(possible, y, 0), pull(jnp.where(possible, g, 0))[0]

            return run

        by_both(of, kernel._log_likelihood, kernel._as_defined, (x,), "jnn_ctc_backward", rtol)


@pytest.mark.parametrize("name", DERIVATIVES)
def test_every_derivative_is_that_of_xlas(name, rng):
    x, w = jnp.asarray(rng.standard_normal((5, 3, 4))), jnp.asarray(rng.standard_normal(4))

    def loss(x, w):
        steps, batch = x.shape[:2]
        labels, lengths = jnp.tile(jnp.asarray([[1, 1]]), (batch, 1)), jnp.full(batch, 2)
        return F.ctc_loss(F.log_softmax(x * w[None, None], -1), labels, jnp.full(batch, steps), lengths, reduction="none")

    derivative_is_xlas(loss, name, x, w)
