"""DataParallel over virtual devices: torch's semantics, computed here part by part."""

from __future__ import annotations

import collections
import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jnn as nn
import jnn.functional as F
from jnn.parallel import data_parallel, gather, parallel_apply, replicate, scatter

X = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 2, 8)


def model():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def by_parts(m, x, parts):
    """What torch's replicas compute: each part with its own statistics, the buffers of the first kept."""
    twins = [copy.deepcopy(m) for _ in parts]
    outs = [twin(x[part]) for twin, part in zip(twins, parts, strict=True)]
    return np.concatenate(outs), twins[0].state_dict()


@pytest.mark.parametrize(
    ("devices", "size", "parts"),
    [
        ([0, 1], 8, [slice(0, 4), slice(4, 8)]),
        (None, 8, None),
        ([0, 1, 2], 8, [slice(0, 3), slice(3, 6), slice(6, 8)]),
        ([0, 1], 7, [slice(0, 4), slice(4, 7)]),
        ([0], 8, [slice(0, 8)]),
    ],
)
def test_outputs_and_buffers_are_those_of_replicas(devices, size, parts):
    m = model()
    if parts is None:
        m.eval()  # one sample a device has no batch statistics
        parts = [slice(i, i + 1) for i in range(8)]
    expected, state = by_parts(m, X[:size], parts)
    parallel = nn.DataParallel(m, devices)
    parallel.train(m.training)
    np.testing.assert_allclose(parallel(X[:size]), expected, rtol=1e-5, atol=1e-6)
    for name, value in state.items():
        np.testing.assert_allclose(parallel.state_dict()[f"module.{name}"], value, rtol=1e-5, atol=1e-6)


def test_training_is_that_of_one_device_where_no_statistics_differ():
    plain = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2))
    parallel = nn.DataParallel(copy.deepcopy(plain), [0, 1, 2, 3])

    def loss_fn(m, x, y):
        return F.cross_entropy(m(x), y)

    steps = [nn.train_step(loss_fn, nn.optim.Optimizer(m, optax.sgd(0.1, momentum=0.9))) for m in (plain, parallel)]
    for _ in range(5):
        losses = [float(step(X, Y)) for step in steps]
        np.testing.assert_allclose(*losses, rtol=1e-5)
    for name, value in plain.state_dict().items():
        np.testing.assert_allclose(parallel.state_dict()[f"module.{name}"], value, rtol=1e-4, atol=1e-6)


def test_each_device_draws_its_own_numbers():
    parallel = nn.DataParallel(nn.Dropout(0.5), [0, 1])
    out = np.asarray(parallel(jnp.ones((2, 64), jnp.float32)))
    assert not np.array_equal(out[0], out[1])
    params, buffers = nn.split(parallel)
    again = [nn.pure(parallel).apply(params, buffers, jnp.ones((2, 64)), train=True, key=jax.random.key(3))[0] for _ in range(2)]
    np.testing.assert_array_equal(*again)


def test_other_shapes_and_refusals():
    class Net(nn.Module):
        def forward(self, x, scale, flag=False):
            return {"sum": (x * scale).sum(), "x": x if flag else -x}

    out = nn.DataParallel(Net(), [0, 1], dim=1)(np.ones((3, 4), np.float32), 2.0, flag=True)
    assert out["x"].shape == (3, 4)
    assert out["sum"].tolist() == [[12.0, 12.0]]
    with pytest.raises(ValueError, match="DataParallel: device_ids must be numbers of the 8 local devices"):
        nn.DataParallel(nn.Identity(), [99])
    with pytest.raises(TypeError, match="DataParallel: module must be a Module"):
        nn.DataParallel(3)
    with pytest.raises(ValueError, match="DataParallel: the inputs must have one batch size"):
        nn.DataParallel(nn.Bilinear(2, 2, 2), [0, 1])(np.ones((2, 2), np.float32), np.ones((4, 2), np.float32))


def test_synchronised_statistics_are_those_of_the_whole_batch():
    for size in (8, 7):  # the second is computed as one
        plain, parallel = model(), nn.DataParallel(nn.SyncBatchNorm.convert_sync_batchnorm(model()), [0, 1, 2, 3])
        parallel.module.load_state_dict(plain.state_dict())
        np.testing.assert_allclose(parallel(X[:size]), plain(X[:size]), rtol=1e-4, atol=1e-5)
        for name, value in plain.state_dict().items():
            np.testing.assert_allclose(parallel.state_dict()[f"module.{name}"], value, rtol=1e-5, atol=1e-6)


def test_outputs_are_gathered_where_output_device_says():
    m = model().eval()
    devices = jax.local_devices()
    spread = nn.DataParallel(m, [0, 1])(X)
    assert len(spread.devices()) == 2
    for output_device, expected in ((3, devices[3]), (devices[2], devices[2]), ("cpu", devices[0])):
        out = nn.DataParallel(m, devices[:2], output_device)(X)
        assert out.devices() == {expected}
        np.testing.assert_array_equal(out, spread)
    with pytest.raises(ValueError, match="DataParallel: device_ids must be numbers of the 8 local devices"):
        nn.DataParallel(m, [0, 1], 99)
    copied = copy.deepcopy(nn.DataParallel(m, [0, 1], 3))
    np.testing.assert_array_equal(copied(X), spread)
    functional = data_parallel(m, X, [0, 1], 3)
    np.testing.assert_array_equal(functional, spread)
    # One program over the mesh sums products by XLA, a call of each layer by jnn's library: in another order.
    np.testing.assert_allclose(data_parallel(m, (), [0], module_kwargs={"input": X}), m(X), rtol=1e-6, atol=1e-7)


class TestParts:
    """replicate, scatter, parallel_apply and gather do what DataParallel does in one."""

    def test_together(self):
        m, other = model(), model()
        other.load_state_dict(m.state_dict())
        replicas = replicate(m, [1, 2, 3])
        outputs = parallel_apply(replicas, [(x,) for x in scatter(X, [1, 2, 3])], devices=[1, 2, 3])
        assert [out.devices().pop() for out in outputs] == jax.local_devices()[1:4]
        expected, state = by_parts(other, X, [slice(0, 3), slice(3, 6), slice(6, 8)])
        np.testing.assert_allclose(gather(outputs, 0), expected, rtol=1e-5, atol=1e-6)
        for name, value in state.items():  # the first replica has written to the module's own buffers
            np.testing.assert_allclose(m.state_dict()[name], value, rtol=1e-5, atol=1e-6)

    def test_replicas(self):
        m = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
        m.append(m[0])  # tied
        first, second = replicate(m, [0, 1], detach=True)
        assert second[0] is second[2]
        assert not any(p.requires_grad for p in first.parameters())
        assert m[0].weight.requires_grad
        second[0].weight.data.fill_(0)
        assert np.any(m[0].weight)
        assert replicate(m, []) == []

    def test_scatter_as_torch(self):
        Pair = collections.namedtuple("Pair", "a b")
        parts = scatter({"x": X, "rest": [Pair(X[:, :1], "label"), 3], "none": ()}, [0, 1, 2])
        assert [p["x"].shape[0] for p in parts] == [3, 3, 2]
        assert all(isinstance(p["rest"][0], Pair) and p["rest"][0].b == "label" and p["rest"][1] == 3 and p["none"] == () for p in parts)
        assert isinstance(scatter(X, [0, 1]), tuple)
        assert len(scatter(X[:2], [0, 1, 2])) == 2  # fewer rows than devices
        assert [p.shape for p in scatter(X, [0, 1], dim=1)] == [(8, 2), (8, 1)]
        assert scatter("text", [0, 1]) == ["text", "text"]

    def test_gather_as_torch(self):
        Pair = collections.namedtuple("Pair", "a b")
        parts = [{"p": Pair(jnp.ones((1, 2)), None)}, {"p": Pair(jnp.zeros((2, 2)), None)}]
        assert gather(parts, 1)["p"].a.shape == (3, 2)
        assert gather(parts, 1)["p"].b is None
        with pytest.warns(UserWarning, match="gather: scalars are joined to a vector"):
            assert gather([jnp.float32(1), jnp.float32(2)], "cpu").tolist() == [1.0, 2.0]
        with pytest.raises(ValueError, match="gather: dicts must have the same keys"):
            gather([{"a": X}, {"b": X}], 0)
        with pytest.raises(ValueError, match="parallel_apply: every module needs its inputs.*modules=1, inputs=2"):
            parallel_apply([nn.Identity()], [X, X])
        with pytest.raises(RuntimeError, match="weight") as caught:
            parallel_apply([nn.Linear(3, 2)], [(X[:, :2],)], devices=[1])
        assert any("in replica 0 on" in note for note in caught.value.__notes__)
