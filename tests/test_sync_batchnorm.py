"""SyncBatchNorm: shards of one batch give what torch's BatchNorm gives for the whole, under every mapping."""

from __future__ import annotations

import contextlib
import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jnn as nn
from jnn import layers as L

pytestmark = pytest.mark.usefixtures("quick_compilation")

AXIS, SHARDS = "batch", 4
PAIRS = ((0, 3), (1, 2))
UNEVEN = ((2,), (0, 1, 3))


def mesh():
    return Mesh(np.array(jax.devices()[:SHARDS]), (AXIS,))


def vmap(f):
    return lambda x, *rest: jax.vmap(f, (0, *[None] * len(rest)), axis_name=AXIS)(x, *rest)


def pmap(f):
    return lambda x, *rest: jax.pmap(f, AXIS, in_axes=(0, *[None] * len(rest)), devices=jax.devices()[:SHARDS])(x, *rest)


def shard_map(check_vma):
    def mapped(f):
        def one(x, *rest):
            return jax.tree.map(lambda y: y[None], f(x[0], *rest))

        def run(x, *rest):
            specs = P(AXIS), *[P()] * len(rest)
            return jax.jit(jax.shard_map(one, mesh=mesh(), in_specs=specs, out_specs=P(AXIS), check_vma=check_vma))(x, *rest)

        return run

    return mapped


def plain_jit(f):
    def run(x, *rest):
        def whole(x, *rest):
            y, new = f(x.reshape(-1, *x.shape[2:]), *rest)
            return y.reshape(x.shape), jax.tree.map(lambda b: jnp.broadcast_to(b, (SHARDS, *b.shape)), new)

        return jax.jit(whole)(jax.device_put(x, NamedSharding(mesh(), P(AXIS))), *rest)

    return run


@contextlib.contextmanager
def ambient(mapping):
    """Under plain jit, the mesh that names the axis."""
    with jax.set_mesh(mesh()) if mapping == "jit" else contextlib.nullcontext():
        yield


MAPPINGS = {"vmap": vmap, "pmap": pmap, "shard_map": shard_map(False), "shard_map_vma": shard_map(True), "jit": plain_jit}


def batch(dtype, mean=0.0):
    rng = np.random.default_rng(0)
    x = (mean + rng.standard_normal((SHARDS, 2, 3, 5)) + np.arange(SHARDS).reshape(-1, 1, 1, 1)).astype(dtype)
    state = {"weight": rng.standard_normal(3).astype(dtype), "bias": rng.standard_normal(3).astype(dtype)}
    return x, state


def oracle(x, state, groups, momentum):
    """torch's outputs, input and weight gradients of sum(sin(y)), and running statistics by shard, in float64."""
    outputs = {"y": np.zeros(x.shape), "x": np.zeros(x.shape), "mean": np.zeros((SHARDS, 3)), "var": np.zeros((SHARDS, 3))}
    weights = {"weight": 0.0, "bias": 0.0}
    for group in groups:
        layer = torch.nn.BatchNorm1d(3, momentum=momentum).double()
        layer.load_state_dict({n: torch.tensor(v).double() for n, v in state.items()}, strict=False)
        whole = torch.tensor(x[list(group)].reshape(-1, *x.shape[2:]), dtype=torch.float64, requires_grad=True)
        y = layer(whole)
        torch.sin(y).sum().backward()
        for name, value in (("y", y), ("x", whole.grad)):
            outputs[name][list(group)] = value.detach().numpy().reshape(-1, *x.shape[1:])
        outputs["mean"][list(group)], outputs["var"][list(group)] = layer.running_mean.numpy(), layer.running_var.numpy()
        weights = {n: weights[n] + getattr(layer, n).grad.numpy() for n in weights}
    return outputs, weights


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize(("groups", "momentum"), [(None, 0.1), (PAIRS, None), (UNEVEN, 0.1)], ids=["all", "pairs", "uneven"])
def test_shards_are_one_batch(mapping, groups, momentum):
    x, state = batch(np.float64)
    group = AXIS if groups is None else (AXIS, [list(g) for g in groups])
    layer = L.SyncBatchNorm(3, momentum=momentum, process_group=group)
    buffers = jax.tree.map(lambda b: b.astype(float) if b.ndim else b, layer.init(jax.random.key(0))[1])
    run = MAPPINGS[mapping](lambda x, state: layer.apply(state, buffers, x, train=True))

    def loss(x, state):
        y, new = run(x, state)
        return jnp.sum(jnp.sin(y)), (y, new)

    with ambient(mapping):
        (grad_x, grad_state), (y, new) = jax.grad(loss, (0, 1), has_aux=True)(jnp.asarray(x), state)
    expected, weights = oracle(x, state, groups or (range(SHARDS),), momentum)
    np.testing.assert_allclose(y, expected["y"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(grad_x, expected["x"], rtol=1e-8, atol=1e-11)
    kept = slice(0, 1) if mapping == "jit" else slice(None)  # one program, one set of buffers: that of the first part
    for name in ("mean", "var"):
        np.testing.assert_allclose(new[f"running_{name}"][kept], expected[name][kept], rtol=1e-10)
    for name, value in weights.items():
        np.testing.assert_allclose(grad_state[name], value, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_a_mean_far_from_zero_costs_no_precision(mapping):
    x, state = batch(np.float32, mean=1e4)
    layer = L.SyncBatchNorm(3, process_group=AXIS)
    run = MAPPINGS[mapping](lambda x: layer.apply(state, layer.init(jax.random.key(0))[1], x, train=True))
    # torch's own float32 is wrong by 5e-4 here, for its mean is rounded to 1e-3; its float64 on the same numbers is not.
    expected, _ = oracle(x, state, (range(SHARDS),), 0.1)
    with ambient(mapping):
        y, new = run(jnp.asarray(x))
        grad = jax.grad(lambda x: jnp.sum(jnp.sin(run(x)[0])))(jnp.asarray(x))
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, expected["y"], atol=1e-4)
    np.testing.assert_allclose(grad, expected["x"], atol=1e-4)
    np.testing.assert_allclose(new["running_mean"], expected["mean"], rtol=1e-6)
    np.testing.assert_allclose(new["running_var"], expected["var"], rtol=1e-4)


def test_gradients_inside_the_mapped_function_are_those_of_the_summed_loss():
    x, state = batch(np.float64)
    layer = L.SyncBatchNorm(3, process_group=AXIS)
    buffers = layer.init(jax.random.key(0))[1]

    def one(x):
        return jax.grad(lambda x: jnp.sum(jnp.sin(layer.apply(state, buffers, x, train=True)[0])))(x)

    np.testing.assert_allclose(vmap(one)(jnp.asarray(x)), oracle(x, state, (range(SHARDS),), 0.1)[0]["x"], rtol=1e-8, atol=1e-12)


def test_one_value_on_each_shard_is_enough_and_evaluation_needs_no_axis():
    x, state = batch(np.float32)
    layer = L.SyncBatchNorm(3, process_group=AXIS)
    buffers = layer.init(jax.random.key(0))[1]
    y, _ = vmap(lambda x: layer.apply(state, buffers, x, train=True))(jnp.asarray(x[:, :1, :, 0]))
    np.testing.assert_allclose(y, oracle(x[:, :1, :, :1], state, (range(SHARDS),), 0.1)[0]["y"][..., 0], rtol=1e-4, atol=1e-5)
    y, new = layer.apply(state, buffers, x[0])
    np.testing.assert_allclose(y, x[0] * state["weight"][:, None] / np.sqrt(1 + 1e-5) + state["bias"][:, None], rtol=1e-5, atol=1e-6)
    assert new["num_batches_tracked"] == 0


def test_several_axes():
    x, state = batch(np.float64)
    layer = L.SyncBatchNorm(3, process_group=("rows", "columns"))
    buffers = layer.init(jax.random.key(0))[1]
    one = jax.vmap(lambda x: layer.apply(state, buffers, x, train=True)[0], axis_name="rows")
    y = jax.vmap(one, axis_name="columns")(x.reshape(2, 2, *x.shape[1:]))
    np.testing.assert_allclose(y.reshape(x.shape), oracle(x, state, (range(SHARDS),), 0.1)[0]["y"], rtol=1e-9, atol=1e-12)
    # Of a batch spread over two axes, those along one of them are a group.
    grid = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("rows", "columns"))
    along = L.SyncBatchNorm(3, process_group="columns")
    step = jax.shard_map(
        lambda x: along.apply(state, buffers, x, train=True)[0],
        mesh=grid,
        in_specs=P(("rows", "columns")),
        out_specs=P(("rows", "columns")),
    )
    expected = oracle(x, state, ((0, 1), (2, 3)), 0.1)[0]["y"]
    np.testing.assert_allclose(jax.jit(step)(x.reshape(8, 3, 5)).reshape(x.shape), expected, rtol=1e-9, atol=1e-12)


def test_what_is_not_bound_or_does_not_fit_is_refused():
    x, state = batch(np.float32)
    named, groups = L.SyncBatchNorm(3, process_group="other"), L.SyncBatchNorm(3, process_group=(AXIS, [[0, 1], [2]]))
    buffers = named.init(jax.random.key(0))[1]
    for mapping in ("vmap", "jit"):
        with (
            ambient(mapping),
            pytest.raises(RuntimeError, match="SyncBatchNorm: process_group must name mapped axes.*process_group='other'"),
        ):
            MAPPINGS[mapping](lambda x: named.apply(state, buffers, x, train=True))(jnp.asarray(x))
        with ambient(mapping), pytest.raises(RuntimeError, match="SyncBatchNorm: the groups must hold every index along the axis.*size=4"):
            MAPPINGS[mapping](lambda x: groups.apply(state, buffers, x, train=True))(jnp.asarray(x))
    for bad in ([[0, 1], [1, 2]], [[1, 2]], [[0], []]):
        with pytest.raises(ValueError, match="SyncBatchNorm: each index along the axis must be in one group"):
            L.SyncBatchNorm(3, process_group=(AXIS, bad))
    halves = L.SyncBatchNorm(3, process_group=(AXIS, [[0, 1], [2, 3]]))
    with jax.set_mesh(mesh()), pytest.raises(RuntimeError, match="groups need a batch that their number of shards divides, got shards=4"):
        halves.apply(state, buffers, jnp.asarray(x[:3, 0]), train=True)
    singles = L.SyncBatchNorm(3, process_group=(AXIS, [[0], [1, 2, 3]]))
    with pytest.raises(ValueError, match="SyncBatchNorm: statistics need more than one value per channel"):
        vmap(lambda x: singles.apply(state, buffers, x, train=True))(jnp.asarray(x[:, :1, :, 0]))


def test_in_a_call_that_is_not_parallel_it_is_batch_norm():
    x = batch(np.float32)[0].reshape(-1, 3, 5)
    plain, sync = nn.BatchNorm1d(3), nn.SyncBatchNorm(3)
    np.testing.assert_allclose(sync(x), plain(x), rtol=1e-5, atol=1e-6)
    for name, value in plain.state_dict().items():
        np.testing.assert_allclose(sync.state_dict()[name], value, rtol=1e-6)
    assert "process_group" not in repr(sync)
    np.testing.assert_allclose(sync.eval()(x), plain.eval()(x), rtol=1e-5, atol=1e-6)


class TestConversion:
    def model(self):
        shared = nn.BatchNorm1d(4, momentum=None, dtype=jnp.float64)
        return nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4, eps=1e-3, bias=False), nn.Sequential(shared, nn.ReLU(), shared), nn.LayerNorm(4)
        )

    def test_every_batch_norm_is_converted_with_its_state(self):
        m = self.model()
        m[2].eval()
        before, weight = copy.deepcopy(m), m[1].weight
        new = nn.SyncBatchNorm.convert_sync_batchnorm(m, ("a", "b"))
        assert new is m
        assert isinstance(m[1], nn.SyncBatchNorm)
        assert m[1].weight is weight
        assert m[1].bias is None
        assert m[1].process_group == ("a", "b")
        assert (m[1].eps, m[1].training, m[2][0].momentum, m[2][0].training) == (1e-3, True, None, False)
        assert m[2][0] is m[2][2]
        assert m[2][0].weight.dtype == np.float64
        assert [*m.state_dict()] == [*before.state_dict()]
        assert isinstance(nn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm3d(2)), nn.SyncBatchNorm)
        theirs = torch.nn.SyncBatchNorm.convert_sync_batchnorm(torch.nn.Sequential(torch.nn.BatchNorm2d(2)))
        assert repr(nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(2)))) == repr(theirs)

    def test_a_lazy_one_is_refused(self):
        with pytest.raises(ValueError, match="SyncBatchNorm: a lazy batch normalisation must have been called"):
            nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.LazyBatchNorm2d()))
        with pytest.raises(TypeError, match="SyncBatchNorm: module must be a Module"):
            nn.SyncBatchNorm.convert_sync_batchnorm(L.BatchNorm1d(3))
