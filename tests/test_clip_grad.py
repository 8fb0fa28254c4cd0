"""Clipping, side by side with torch, and parameters as a vector."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jnn
from jnn import utils

GRADS = [np.random.default_rng(i).standard_normal(shape) for i, shape in enumerate([(3, 4), (5,), ()])]


def both(grads=GRADS):
    """Parameters with these gradients, and one without, on both sides."""
    theirs = [torch.nn.Parameter(torch.zeros(np.shape(g), dtype=torch.float64)) for g in grads] + [torch.nn.Parameter(torch.zeros(2))]
    mine = [jnn.Parameter(jnp.zeros(np.shape(g))) for g in grads] + [jnn.Parameter(jnp.zeros(2))]
    for m, t, g in zip(mine, theirs, grads):
        m.grad, t.grad = jnp.asarray(g), torch.tensor(g)
    return mine, theirs


def assert_same(mine, theirs):
    for m, t in zip(mine, theirs, strict=True):
        assert (m.grad is None) == (t.grad is None)
        if t.grad is not None:
            np.testing.assert_allclose(m.grad, t.grad, rtol=1e-12)


@pytest.mark.parametrize("max_norm", [0.5, 1e6, 0])
@pytest.mark.parametrize("norm_type", [2.0, 1, 3.5, "inf", -math.inf, 0])
def test_clip_grad_norm(norm_type, max_norm):
    mine, theirs = both()
    for foreach in (None, False):
        total = utils.clip_grad_norm_(mine, max_norm, norm_type, foreach=foreach)
        expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type, foreach=foreach)
        np.testing.assert_allclose(total, expected, rtol=1e-6 if max_norm == 0 else 1e-12)
        assert_same(mine, theirs)
    tree, total = utils.clip_grad_norm({"a": jnp.asarray(GRADS[0]), "b": {"c": jnp.asarray(GRADS[1])}}, max_norm, norm_type)
    mine, theirs = both(GRADS[:2])
    np.testing.assert_allclose(total, torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type), rtol=1e-12)
    np.testing.assert_allclose(tree["b"]["c"], theirs[1].grad, rtol=1e-12)


def test_one_parameter_a_generator_and_nothing():
    mine, theirs = both()
    np.testing.assert_allclose(utils.clip_grad_norm_(mine[0], 0.1), torch.nn.utils.clip_grad_norm_(theirs[0], 0.1))
    np.testing.assert_allclose(
        utils.clip_grad_norm_((p for p in mine), 0.1), torch.nn.utils.clip_grad_norm_((p for p in theirs), 0.1), rtol=1e-12
    )
    assert_same(mine, theirs)
    for source in (utils, torch.nn.utils):
        assert float(source.clip_grad_norm_([], 1.0)) == 0
        with pytest.warns(UserWarning, match="empty generator"):
            source.clip_grad_norm_((p for p in ()), 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_norms_that_are_not_finite(bad):
    for source, parameters in zip((utils, torch.nn.utils), both([np.array([bad, 1.0])]), strict=True):
        with pytest.raises(RuntimeError, match="error_if_nonfinite=False"):
            source.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)
        np.testing.assert_array_equal(parameters[0].grad, [bad, 1.0])
    mine, theirs = both([np.array([bad, 1.0])])
    utils.clip_grad_norm_(mine, 1.0)
    torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    assert_same(mine, theirs)


def test_clip_grad_value_and_given_norms():
    mine, theirs = both()
    utils.clip_grad_value_(mine, 0.4)
    torch.nn.utils.clip_grad_value_(theirs, 0.4)
    assert_same(mine, theirs)
    utils.clip_grads_with_norm_(mine, 1.0, jnp.asarray(3.0))
    torch.nn.utils.clip_grads_with_norm_(theirs, 1.0, torch.tensor(3.0, dtype=torch.float64))
    assert_same(mine, theirs)
    pure = utils.clip_grads_with_norm(utils.clip_grad_value([jnp.asarray(g) for g in GRADS], 0.4), 1.0, jnp.asarray(3.0))
    np.testing.assert_allclose(pure[0], mine[0].grad)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtypes_are_kept(dtype):
    grads = {"a": jnp.full((300, 300), 3, dtype), "b": jnp.ones((2,), dtype)}
    clipped, total = utils.clip_grad_norm(grads, 1.0)
    theirs = torch.nn.utils.get_total_norm([torch.full((300, 300), 3.0, dtype=getattr(torch, dtype))])
    assert clipped["a"].dtype == total.dtype == dtype
    np.testing.assert_allclose(float(total), float(theirs), rtol=1e-2)


def test_pure_forms_in_traces():
    grads = {"a": jnp.asarray(GRADS[0]), "b": [jnp.asarray(GRADS[1])]}
    eager = utils.clip_grad_norm(grads, 0.5)
    jax.tree.map(np.testing.assert_allclose, jax.jit(lambda g: utils.clip_grad_norm(g, 0.5))(grads), eager)
    stacked = jax.tree.map(lambda g: jnp.stack([g, 2 * g]), grads)
    _, totals = jax.vmap(lambda g: utils.clip_grad_norm(g, 0.5))(stacked)
    np.testing.assert_allclose(totals, [eager[1], 2 * eager[1]])
    # The gradient of a norm of zeros is zero, not NaN.
    assert (jax.grad(lambda g: utils.get_total_norm([g]))(jnp.zeros(3)) == 0).all()
    with pytest.raises(RuntimeError, match="get_total_norm: error_if_nonfinite needs known values"):
        jax.jit(lambda g: utils.get_total_norm(g, error_if_nonfinite=True))(grads)


def test_what_is_refused_and_what_is_deprecated():
    with pytest.raises(TypeError, match="clip_grad_norm_: parameters must be Parameters; for trees of gradients use clip_grad_norm"):
        utils.clip_grad_norm_([jnp.ones(3)], 1.0)
    for source, parameters in zip((utils, torch.nn.utils), both(), strict=True):
        with pytest.warns(FutureWarning, match="clip_grad_norm_"):
            assert float(source.clip_grad_norm(parameters, 1.0)) > 1


def test_accumulate_then_clip_as_in_torch(rng):
    theirs = torch.nn.Linear(3, 2).double()
    mine = jnn.Linear(3, 2).to(dtype=np.float64)
    mine.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    for x in (rng.standard_normal((4, 3)) for _ in range(2)):
        jnn.backward(lambda m, x: (m(x) ** 2).sum(), mine, x)
        (theirs(torch.tensor(x)) ** 2).sum().backward()
    total = utils.clip_grad_norm_(mine.parameters(), 1.0)
    np.testing.assert_allclose(total, torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0), rtol=1e-12)
    assert_same(mine.parameters(), theirs.parameters())


def test_parameters_as_a_vector():
    for source, model in ((utils, jnn.Linear(3, 2)), (torch.nn.utils, torch.nn.Linear(3, 2))):
        vector = source.parameters_to_vector(model.parameters())
        assert vector.shape == (8,)
        np.testing.assert_array_equal(np.asarray(vector.detach() if source is not utils else vector)[6:], np.asarray(model.bias.detach()))
        weight = model.weight
        source.vector_to_parameters(vector * 2, model.parameters())
        assert model.weight is weight
        np.testing.assert_array_equal(np.asarray(weight.detach()).ravel(), np.asarray((vector * 2)[:6].tolist(), np.float32))
        with pytest.raises(TypeError):
            source.vector_to_parameters([1.0] * 8, model.parameters())
        with pytest.raises(RuntimeError):
            source.vector_to_parameters(vector[:5], model.parameters())
        with pytest.raises(ValueError):
            source.parameters_to_vector([])


def test_the_gradient_through_a_vector():
    model = jnn.Linear(3, 2)
    _, grads = jnn.value_and_grad(lambda m: (utils.parameters_to_vector(m.parameters()) ** 2).sum())(model)
    np.testing.assert_allclose(grads["weight"], 2 * np.asarray(model.weight), rtol=1e-6)
