"""Functions of each element over long rows are the same functions, in every transformation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

import jnn.functional as F
from jnn.kernels.platform import lowering
from jnn.kernels.pointwise import over_rows

SHAPES = {(16, 8, 24, 32): (16, 8, 768), (64, 32, 5, 7): (64, 1120), (32768, 3): (98304,), (1024, 64): (1024, 64), (8, 9): (8, 9)}


def _x(shape, dtype=np.float64):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_long(shape):
    seen = []

    def fn(x, y):
        seen.append(x.shape)
        return x * jnp.sin(y)

    x, y = _x(shape), _x(shape) + 1
    with lowering(native=False):
        out = over_rows(fn, x, y)
    assert seen == [SHAPES[shape]]
    np.testing.assert_array_equal(out, x * jnp.sin(y))
    with lowering(native=True):
        over_rows(fn, x, y)
    assert seen[1] == shape


@pytest.mark.parametrize("fn", [F.tanh, F.sigmoid, F.gelu, lambda x: F.prelu(x, jnp.linspace(0.1, 0.7, x.shape[1]))])
def test_derivatives(fn):
    x = _x((16, 128, 4, 8))
    # Away from where slopes change.
    x += jnp.sign(x)
    with lowering(native=False):
        check_grads(lambda x: jnp.sum(fn(x) ** 2, 0), (x,), 2, atol=1e-4, rtol=1e-4)


def test_gradients_have_long_rows_too():
    with lowering(native=False):
        jaxpr = jax.make_jaxpr(lambda x, g: jax.vjp(F.tanh, x)[1](g))(_x((64, 64, 4, 8)), _x((64, 64, 4, 8)))
    assert str(jaxpr).count("value=True") == 2


def test_mapped():
    x = _x((3, 64, 64, 4, 8), np.float32)
    with lowering(native=False):
        np.testing.assert_array_equal(jax.vmap(F.tanh)(x), jnp.tanh(x))
        np.testing.assert_array_equal(jax.jit(jax.vmap(jax.grad(lambda x: F.relu(x).sum())))(x), jnp.where(x > 0, 1, 0))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, np.int32])
def test_other_types(dtype):
    x = (3 * _x((64, 64, 4, 8))).astype(dtype)
    with lowering(native=False):
        out = F.relu(x)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, jnp.maximum(x, 0))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("a"), P(None, "a"), P(None, None, None, "a")])
def test_sharded(spec, axis_type):
    mesh = Mesh(np.array(jax.devices()[:2]), ("a",), axis_types=(axis_type,))
    x = _x((64, 64, 4, 8))
    with jax.set_mesh(mesh), lowering(native=False):
        sharded = jax.device_put(x, NamedSharding(mesh, spec))
        y, dx = jax.jit(jax.value_and_grad(lambda x: F.tanh(x).sum()))(sharded)
    np.testing.assert_allclose(y, jnp.tanh(x).sum())
    np.testing.assert_allclose(dx, 1 - jnp.tanh(x) ** 2)


def test_sizes_left_open():
    sizes = jax.export.symbolic_shape("n, 4, 128, 32")
    with lowering(native=False):
        exported = jax.export.export(jax.jit(F.tanh))(jax.ShapeDtypeStruct(sizes, np.float32))
    x = _x((5, 4, 128, 32), np.float32)
    np.testing.assert_array_equal(exported.call(x), jnp.tanh(x))


SMALL_LAST = ["relu", "relu6", "elu", "selu", "celu", "leaky_relu", "hardtanh", "hardswish", "hardsigmoid", "hardshrink", "softshrink"]
SMALL_LAST += ["gelu", "silu", "mish", "softplus", "softsign", "tanhshrink", "logsigmoid", "sigmoid", "tanh", "glu", "softmax", "softmin"]
SMALL_LAST += ["log_softmax", "normalize", "local_response_norm", "instance_norm"]


@pytest.mark.parametrize("name", SMALL_LAST)
def test_images_of_short_rows_are_torchs(name):
    """Large enough to be computed over long rows, which only functions of each element may be."""
    x = _x((32, 16, 12, 16), np.float32)
    args = {"softmax": (1,), "softmin": (1,), "log_softmax": (1,), "glu": (1,), "local_response_norm": (3,)}.get(name, ())
    theirs = torch.tensor(np.asarray(x), requires_grad=True)
    expected = getattr(torch.nn.functional, name)(theirs, *args)
    (expected**2).sum().backward()
    found, pull = jax.vjp(lambda x: getattr(F, name)(x, *args), x)
    np.testing.assert_allclose(found, expected.detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pull(2 * found)[0], theirs.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("call", [F.gumbel_softmax, F.dropout, F.dropout2d, lambda x, key: F.alpha_dropout(x, 0.3, True, key=key), F.rrelu])
def test_draws_do_not_depend_on_rows(call):
    x, key = _x((32, 16, 12, 16), np.float32), jax.random.key(0)
    options = {"training": True} if call is F.rrelu else {"dim": 1} if call is F.gumbel_softmax else {}
    found = call(x, key=key, **options)
    with lowering(native=True):
        jax.clear_caches()
        np.testing.assert_allclose(found, call(x, key=key, **options), rtol=1e-5, atol=1e-6)
    jax.clear_caches()


@pytest.mark.parametrize("loss", [F.mse_loss, F.huber_loss, F.pairwise_distance, F.cosine_similarity, lambda x, y: F.softplus(x * y)])
def test_sizes_left_open_of_losses(loss):
    n = jax.export.symbolic_shape("n, 96")
    shape = jax.ShapeDtypeStruct(n, np.float32)
    with lowering(native=False):
        exported = jax.export.export(jax.jit(loss))(shape, shape)
    x, y = _x((50, 96), np.float32), _x((50, 96), np.float32)[::-1]
    np.testing.assert_allclose(exported.call(x, y), loss(x, y), rtol=1e-5)
