"""Normalisation: what the table does not say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jnn
from jnn import functional as F
from jnn import layers as L


def pure(layer, x, key, **kwargs):
    params, buffers = jax.tree.map(lambda a: a.astype(x.dtype) if a.ndim else a, layer.init(key))
    return layer.apply(params, buffers, x, **kwargs)


@pytest.mark.parametrize(
    ("make", "shape", "error", "message"),
    [
        (lambda: jnn.BatchNorm1d(3), (2, 3, 4, 5), ValueError, "BatchNorm1d: input must be 2D or 3D"),
        (lambda: jnn.BatchNorm2d(3), (2, 3), ValueError, "BatchNorm2d: input must be 4D"),
        (lambda: jnn.BatchNorm1d(3), (1, 3), ValueError, "BatchNorm1d: statistics need more than one value"),
        (lambda: jnn.BatchNorm1d(3), (2, 4), RuntimeError, r"BatchNorm1d: weight must have shape \(4,\)"),
        (lambda: jnn.BatchNorm1d(3, eps=0), (2, 3), ValueError, "BatchNorm1d: eps must be positive"),
        (lambda: jnn.BatchNorm1d(3, eps=-1).eval(), (2, 3), ValueError, "eps must be positive in training and never negative"),
        (lambda: jnn.SyncBatchNorm(3), (3,), ValueError, "SyncBatchNorm: input must have at least two dimensions"),
        (lambda: jnn.SyncBatchNorm(0), (3, 0), ValueError, "SyncBatchNorm: input must have channels"),
        (lambda: jnn.SyncBatchNorm(3, process_group="batch"), (2, 3), RuntimeError, "process_group must name mapped axes.*'batch'"),
        (lambda: jnn.InstanceNorm1d(3), (4,), ValueError, "InstanceNorm1d: input must be 2D or 3D"),
        (lambda: jnn.InstanceNorm1d(3, affine=True), (2, 4, 5), ValueError, "must have num_features channels, got channels=4"),
        (lambda: jnn.InstanceNorm1d(3), (2, 3, 1), ValueError, "InstanceNorm1d: statistics need more than one value"),
        (lambda: jnn.LayerNorm((3, 4)), (2, 4), RuntimeError, "layer_norm: the input must end with normalized_shape"),
        (lambda: jnn.LayerNorm(()), (2, 4), RuntimeError, "normalized_shape must have at least one dimension"),
        (lambda: jnn.RMSNorm(3), (2, 4), RuntimeError, "rms_norm: the input must end with normalized_shape"),
        (lambda: jnn.GroupNorm(2, 4), (1, 6), RuntimeError, r"group_norm: weight must have shape \(6,\)"),
        (lambda: jnn.GroupNorm(3, 3), (1, 3), ValueError, "group_norm: statistics need more than one value"),
        (lambda: jnn.GroupNorm(3, 4), None, ValueError, "GroupNorm: num_groups must divide num_channels, got num_groups=3"),
        (lambda: jnn.LocalResponseNorm(2), (2, 3), ValueError, "local_response_norm: input must have at least three dimensions"),
        (lambda: jnn.LocalResponseNorm(0), (2, 3, 4), RuntimeError, "size must be positive"),
        (lambda: jnn.CrossMapLRN2d(2), (2, 3, 4), ValueError, "CrossMapLRN2d: input must be 4D"),
    ],
)
def test_refusals(make, shape, error, message):
    with pytest.raises(error, match=message):
        make().double()(jnp.ones(shape, jnp.float64))


def test_functions_refuse():
    x = jnp.ones((2, 3), jnp.float32)
    with pytest.raises(RuntimeError, match="running_mean and running_var must be given"):
        F.batch_norm(x, None, None)
    with pytest.raises(RuntimeError, match="weight must have the dtype of the input"):
        F.layer_norm(x, (3,), jnp.ones(3, jnp.float64))
    with pytest.raises(RuntimeError, match="input must be floating point"):
        F.layer_norm(jnp.ones((2, 3), int), (3,))
    with pytest.raises(NotImplementedError, match="arrays are immutable"):
        F.normalize(x, out=x)


def test_instance_norm_warns_of_channels_that_it_does_not_use():
    with pytest.warns(UserWarning, match="InstanceNorm1d: the input must have num_features channels"):
        jnn.InstanceNorm1d(3)(jnp.ones((2, 4, 5)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("function", ["batch_norm", "instance_norm", "layer_norm", "group_norm", "rms_norm"])
def test_half_types_take_statistics_in_float32_and_float32_weights(function, dtype, rng):
    x = jnp.asarray(100 + rng.standard_normal((4, 8, 16)), dtype)
    args = {"batch_norm": (None, None), "layer_norm": ((16,),), "group_norm": (2,), "rms_norm": ((16,),)}.get(function, ())
    options = {"training": True} if function == "batch_norm" else {}
    size = 16 if function in ("layer_norm", "rms_norm") else 8
    weight = jnp.asarray(rng.standard_normal(size), jnp.float32)
    run = getattr(F, function)
    y, exact = run(x, *args, weight=weight, **options), run(x.astype(jnp.float64), *args, weight=weight.astype(jnp.float64), **options)
    assert y.dtype == dtype
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=2 * float(jnp.finfo(dtype).eps), atol=1e-3)


def test_variance_is_taken_in_two_passes(key):
    x = 1e4 + jax.random.normal(key, (8, 3, 64), jnp.float32)
    for y in (F.batch_norm(x, None, None, training=True), F.layer_norm(x, (64,)), F.group_norm(x, 1), F.instance_norm(x)):
        assert 0.99 < float(jnp.std(y)) < 1.01


def test_empty_batches(key):
    y, buffers = pure(L.BatchNorm1d(3), jnp.zeros((0, 3, 2)), key, train=True)
    assert y.shape == (0, 3, 2)
    assert int(buffers["num_batches_tracked"]) == 1
    np.testing.assert_array_equal(buffers["running_mean"], 0)
    assert F.layer_norm(jnp.zeros((0, 3)), (3,)).shape == (0, 3)
    assert F.group_norm(jnp.zeros((0, 4, 2)), 2).shape == (0, 4, 2)
    assert F.local_response_norm(jnp.zeros((0, 4, 2)), 2).shape == (0, 4, 2)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics_over_several_batches(momentum, rng):
    mine, theirs = jnn.BatchNorm1d(3, momentum=momentum).double(), torch.nn.BatchNorm1d(3, momentum=momentum).double()
    for _ in range(3):
        x = rng.standard_normal((4, 3))
        mine(jnp.asarray(x)), theirs(torch.tensor(x))
    for name, value in theirs.named_buffers():
        np.testing.assert_allclose(getattr(mine, name), value.numpy(), rtol=1e-12)
    mine.reset_running_stats()
    assert [float(np.sum(b)) for b in mine.buffers()] == [0, 3, 0]


def test_statistics_can_be_dropped_or_frozen(rng):
    x = jnp.asarray(rng.standard_normal((4, 3)))
    mine = jnn.BatchNorm1d(3).double()
    mine.track_running_stats = False
    mine(x)
    np.testing.assert_array_equal(mine.running_mean, 0)
    np.testing.assert_allclose(mine.eval()(x), x / np.sqrt(1 + 1e-5))
    mine.running_mean = mine.running_var = None
    np.testing.assert_allclose(mine(x), F.batch_norm(x, None, None, training=True))


def test_an_eager_gradient_over_a_live_module_leaks_nothing(rng):
    x = jnp.asarray(rng.standard_normal((4, 3)))
    mine = jnn.BatchNorm1d(3).double()
    jax.grad(lambda x: jnp.sum(mine(x) ** 3))(x)
    np.testing.assert_allclose(mine.running_mean, 0.1 * np.mean(x, 0), rtol=1e-12)
    assert int(mine.num_batches_tracked) == 1


def test_old_checkpoints_have_no_count():
    mine = jnn.BatchNorm1d(3)
    state = {name: value for name, value in mine.state_dict().items() if name != "num_batches_tracked"}
    mine.load_state_dict(state)
    new = mine.state_dict()
    del new["num_batches_tracked"]
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        mine.load_state_dict(new)


def test_weights_of_other_dtypes_give_rms_norm_of_the_inputs_dtype():
    assert F.rms_norm(jnp.ones((2, 3), jnp.float32), (3,), jnp.ones(3, jnp.float64)).dtype == jnp.float32


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6])
def test_cross_map_output_is_torchs(size, rng):
    x = rng.standard_normal((2, 7, 2, 3))
    theirs = torch.nn.CrossMapLRN2d(size, 0.7, 0.6, 1.5)(torch.tensor(x)).numpy()
    np.testing.assert_allclose(jnn.CrossMapLRN2d(size, 0.7, 0.6, 1.5)(jnp.asarray(x)), theirs, rtol=1e-10)


@pytest.mark.parametrize("p", [0, 0.5, 1, 2, 3, -1, float("inf"), -float("inf")])
def test_normalize_of_zeros_has_a_gradient(p):
    x = np.array([[0.0, 0.0], [0.0, 2.0], [3.0, -4.0]])
    theirs = torch.tensor(x, requires_grad=True)
    (torch.nn.functional.normalize(theirs, p) ** 2).sum().backward()
    grad = jax.grad(lambda x: jnp.sum(F.normalize(x, p) ** 2))(jnp.asarray(x))
    np.testing.assert_allclose(grad, theirs.grad.numpy(), rtol=1e-6, atol=1e-9)
