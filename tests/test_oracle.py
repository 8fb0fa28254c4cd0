"""Every row against torch: outputs, gradients of inputs and parameters, buffers, names, repr."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jnn

from . import oracle
from .oracle import ids, quick_jit, rows

RTOL, ATOL = 1e-7, 1e-9


def _cotangents(outputs):
    rng = np.random.default_rng(1)
    return [rng.standard_normal(o.shape) for o in outputs]


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", rows(test="oracle"), ids=ids)
def test_outputs_gradients_and_buffers(case, train, key):
    theirs = oracle.torch_module(case, train)
    mine = oracle.module(case, train, like=theirs)
    params, buffers = jnn.split(mine)
    args, call = oracle.jax_inputs(case)
    floats, rebuild = oracle.split_floats((args, call))
    tensors = [torch.tensor(np.asarray(x), requires_grad=True) for x in floats]
    torch_args, torch_call = rebuild(tensors)
    torch_args, torch_call = jax.tree.map(
        lambda x: torch.tensor(np.asarray(x)) if isinstance(x, jax.Array) else x, (torch_args, torch_call)
    )

    def run(floats, params):
        a, k = rebuild(floats)
        return jnn.pure(mine).apply(params, buffers, *a, train=train, key=key, **k)

    out_t = theirs(*torch_args, **torch_call)
    out, new_buffers = jax.jit(run)(floats, params)
    random = case.random and train
    tolerance = (0, 1e300) if random else (RTOL, ATOL)
    oracle.assert_close(out, out_t, *tolerance, "output")
    if random:
        return
    held = {n: p for n, p in theirs.named_parameters() if not p.requires_grad}
    expected = jnn.core.tree.unflatten({**dict(theirs.named_buffers()), **held})
    oracle.assert_close(new_buffers, expected, RTOL, ATOL, "buffer")

    outs_t = [o for o in oracle.leaves(out_t) if o.requires_grad]
    if not outs_t:
        return
    differentiable = [
        i for i, o in enumerate(o for o in oracle.leaves(out_t) if o.is_floating_point() or o.is_complex()) if o.requires_grad
    ]
    cts = _cotangents(outs_t)
    trained = {n: p for n, p in theirs.named_parameters() if p.requires_grad}
    wanted = [*tensors, *trained.values()]
    grads_t = torch.autograd.grad(outs_t, wanted, [torch.tensor(c) for c in cts], allow_unused=True)
    grads_t = [torch.zeros_like(w) if g is None else g for g, w in zip(grads_t, wanted, strict=True)]

    def loss(floats, params):
        outs = [o for o in oracle.leaves(run(floats, params)[0]) if oracle.is_float(o)]
        return sum(jnp.sum(outs[i] * c) for i, c in zip(differentiable, cts, strict=True))

    grad_inputs, grad_params = quick_jit(jax.grad(loss, argnums=(0, 1)))(floats, params)
    oracle.assert_close(grad_inputs, grads_t[: len(tensors)], RTOL, ATOL, "input gradient")
    flat = jnn.core.tree.flatten(grad_params)
    oracle.assert_close([flat[n] for n in trained], grads_t[len(tensors) :], RTOL, ATOL, "parameter gradient")


@pytest.mark.parametrize("case", rows(test="names"), ids=ids)
def test_names_and_repr(case):
    theirs, mine = oracle.torch_module(case), oracle.module(case)
    assert [*mine.state_dict()] == [*theirs.state_dict()]
    assert [n for n, _ in mine.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert [n for n, _ in mine.named_buffers()] == [n for n, _ in theirs.named_buffers()]
    assert [n for n, _ in mine.named_modules()] == [n for n, _ in theirs.named_modules()]
    assert repr(mine) == repr(theirs)


@pytest.mark.parametrize("case", rows(test="state"), ids=ids)
def test_initial_state_is_like_torchs(case):
    """Shapes and dtypes equal; values of the same spread, compared by mean and standard deviation over all elements."""
    torch.manual_seed(0)
    theirs, mine = oracle.build(case, torch.nn, torch.tensor).state_dict(), oracle.build(case, jnn, jnp.asarray).state_dict()
    for name, value in theirs.items():
        array = np.asarray(mine[name])
        assert array.shape == tuple(value.shape)
        assert str(array.dtype) == str(value.dtype).removeprefix("torch.")
        if value.numel() < 2:  # one draw says nothing of its distribution
            continue
        if value.std() == 0:
            np.testing.assert_allclose(array, value.numpy(), rtol=1e-6)
            continue
        # The largest magnitude of n draws from U(-b, b) is at least b / 4 in all but 4^-n of cases.
        assert abs(array).max() <= 4 * value.abs().max() + 1e-6
        assert abs(array).max() >= value.abs().max() / 4 or value.numel() < 8
