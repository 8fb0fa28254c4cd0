"""Batch normalisations folded into the layers before them, skip_init and the stateless call, side by side with torch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jnn

SOURCES = pytest.mark.parametrize(("nn", "tensor"), [(jnn, jnp.asarray), (torch.nn, torch.tensor)], ids=["jnn", "torch"])


def pairs(make):
    """What ``make`` builds on both sides, with the same random numbers, in evaluation mode."""
    theirs, mine = make(torch.nn), make(jnn)
    rng = np.random.default_rng(0)
    for m, t in zip(mine, theirs, strict=True):
        state = {k: rng.uniform(0.5, 2, v.shape).astype(v.numpy().dtype) for k, v in t.state_dict().items()}
        t.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
        m.load_state_dict(state)
        m.eval()
        t.eval()
    return mine, theirs


CONVOLUTIONS = [
    ("Conv1d", "BatchNorm1d", {}),
    ("Conv2d", "BatchNorm2d", {"bias": False}),
    ("Conv2d", "BatchNorm2d", {"groups": 2, "bn": {"affine": False}}),
    ("Conv3d", "BatchNorm3d", {"bn": {"eps": 0.1}}),
    ("ConvTranspose2d", "BatchNorm2d", {}),
]


@pytest.mark.parametrize(("conv", "norm", "options"), CONVOLUTIONS, ids=str)
def test_convolutions(conv, norm, options):
    options = dict(options)
    bn = options.pop("bn", {})
    mine, theirs = pairs(lambda nn: (getattr(nn, conv)(2, 4, 2, **options), getattr(nn, norm)(4, **bn)))
    transpose = "Transpose" in conv
    fused, expected = jnn.utils.fuse_conv_bn_eval(*mine, transpose), torch.nn.utils.fuse_conv_bn_eval(*theirs, transpose)
    compare(fused, expected)
    x = np.random.default_rng(1).standard_normal((2, 2, 3, 3, 3)[: 2 + int(conv[-2])]).astype(np.float32)
    np.testing.assert_allclose(fused(x), mine[1](mine[0](x)), rtol=1e-4, atol=1e-5)
    assert fused is not mine[0]
    assert ("bias" in mine[0].state_dict()) == options.get("bias", True)


def compare(mine, theirs):
    assert repr(mine) == repr(theirs)
    assert [*mine.state_dict()] == [*theirs.state_dict()]
    for (name, p), q in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(np.asarray(p), q.detach(), rtol=1e-5, err_msg=name)
        assert p.requires_grad == q.requires_grad


@pytest.mark.parametrize(("bias", "features"), [(True, 4), (False, 4), (False, 1)])
def test_linear(bias, features):
    mine, theirs = pairs(lambda nn: (nn.Linear(3, 4, bias=bias), nn.BatchNorm1d(features)))
    fused = jnn.utils.fuse_linear_bn_eval(*mine)
    if features == 4:
        x = np.random.default_rng(1).standard_normal((5, 3)).astype(np.float32)
        np.testing.assert_allclose(fused(x), mine[1](mine[0](x)), rtol=1e-4, atol=1e-5)
    compare(fused, torch.nn.utils.fuse_linear_bn_eval(*theirs))


@SOURCES
def test_refusals(nn, tensor):
    linear, conv = nn.Linear(3, 4).eval(), nn.Conv2d(2, 4, 2).eval()
    for fuse, layer, norm in ((nn.utils.fuse_linear_bn_eval, linear, nn.BatchNorm1d), (nn.utils.fuse_conv_bn_eval, conv, nn.BatchNorm2d)):
        with pytest.raises(AssertionError, match="eval"):
            fuse(layer, norm(4))
        with pytest.raises(AssertionError, match="running"):
            fuse(layer, norm(4, track_running_stats=False).eval())
    with pytest.raises(AssertionError, match="out_features"):
        nn.utils.fuse_linear_bn_eval(linear, nn.BatchNorm1d(3).eval())


def test_weights_of_half_types_keep_them():
    w, b = jnp.ones((4, 3), jnp.bfloat16), None
    fused = jnn.utils.fuse_linear_bn_weights(w, b, *(jnp.ones(4, jnp.float32) for _ in range(2)), 1e-5, None, None)
    assert [p.dtype for p in fused] == [jnp.bfloat16] * 2
    assert not any(p.requires_grad for p in fused)


@SOURCES
def test_skip_init(nn, tensor):
    m = nn.utils.skip_init(nn.Linear, 3, out_features=4, bias=False)
    assert repr(m) == "Linear(in_features=3, out_features=4, bias=False)"
    assert tuple(m.weight.shape) == (4, 3)
    m(tensor(np.ones((2, 3), np.float32)))
    with pytest.raises(RuntimeError, match="device"):
        nn.utils.skip_init(nn.ReLU)
    with pytest.raises(RuntimeError, match="Module"):
        nn.utils.skip_init(dict)


def test_skip_init_gives_zeros_in_the_dtype_and_place_asked_for():
    m = jnn.utils.skip_init(jnn.Conv2d, 2, 3, 2, dtype=jnp.bfloat16, device="cpu:1")
    assert m.weight.dtype == jnp.bfloat16
    assert m.weight.detach().devices() == {jax.devices("cpu")[1]}
    assert not m.weight.any()


@SOURCES
def test_stateless_functional_call(nn, tensor):
    m, x = nn.Linear(2, 2), tensor(np.ones((1, 2), np.float32))
    with pytest.warns(FutureWarning, match="functional_call"):
        out = nn.utils.stateless.functional_call(m, {"weight": tensor(np.eye(2, dtype=np.float32)), "bias": x[0] * 0}, x)
    np.testing.assert_array_equal(np.asarray(out.detach() if nn is torch.nn else out), [[1, 1]])
    with pytest.warns(FutureWarning), pytest.raises(RuntimeError):
        nn.utils.stateless.functional_call(m, {"weight": x}, x, strict=True)


def test_fusing_can_be_differentiated():
    conv, bn = jnn.Linear(3, 4).eval(), jnn.BatchNorm1d(4).eval()
    args = [jnp.asarray(v) for v in (conv.weight, conv.bias, bn.running_mean, bn.running_var)]
    grad = jax.grad(lambda w: jnp.sum(jnp.asarray(jnn.utils.fuse_linear_bn_weights(w, *args[1:], 1e-5, None, None)[0])))(args[0])
    np.testing.assert_allclose(grad, 1 / np.sqrt(1 + 1e-5), rtol=1e-6)
