"""Training on many devices of one process equals training on one."""

from __future__ import annotations

import copy
import pickle
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jnn as nn
import jnn.functional as F
from jnn import layers as L
from jnn import parallel
from jnn.core import tree

from . import parallel_problem as problem

pytestmark = pytest.mark.usefixtures("quick_compilation")

LINE = {"mesh": Mesh(np.array(jax.devices()[:4]), ("data",))}
GRID = {"mesh": jax.make_mesh((2, 2), ("rows", "columns"), devices=jax.devices()[:4])}  # of explicit axes, by default
FORMS = {
    "shard_map": LINE,
    "pmap": LINE | {"mapping": "pmap"},
    "jit": LINE | {"mapping": "jit"},
    "grid": GRID | {"axis_name": ("rows", "columns")},
    "one axis of two": GRID | {"axis_name": "rows"},
    "grid by jit": GRID | {"axis_name": ("rows", "columns"), "mapping": "jit"},
    "one device": {"mesh": Mesh(np.array(jax.devices()[:1]), ("data",))},
}


def make_step(model, form, loss_fn=problem.loss_fn, **options):
    return parallel.train_step(loss_fn, problem.optimizer(model), **options, **form)


@pytest.fixture(scope="module")
def alone():
    """One device; the last batch is smaller, of a number of rows that no other divides."""
    m = problem.model(nn.BatchNorm2d)
    x, y = problem.batches()[-1]
    return problem.run(nn.train_step(problem.loss_fn, problem.optimizer(m)), m, [*problem.batches(), (x[:7], y[:7])])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_run_of_one_device(form, alone):
    m = problem.model(nn.SyncBatchNorm)
    x, y = problem.batches()[-1]
    problem.assert_same(problem.run(make_step(m, FORMS[form]), m, [*problem.batches(), (x[:7], y[:7])]), alone)


def test_data_parallel_is_the_run_of_one_device(alone):
    m = problem.model(nn.SyncBatchNorm)
    step = nn.train_step(problem.loss_fn, problem.optimizer(nn.DataParallel(m, [0, 1, 2, 3])))
    x, y = problem.batches()[-1]
    problem.assert_same(problem.run(step, m, [*problem.batches(), (x[:7], y[:7])]), alone)


def test_distributed_data_parallel_of_one_process_is_the_run_of_one_device(alone):
    m = nn.SyncBatchNorm.convert_sync_batchnorm(problem.model(nn.BatchNorm2d), "replica")
    ddp = parallel.DistributedDataParallel(m, [0, 1, 2, 3], process_group="replica")
    x, y = problem.batches()[-1]
    step = nn.train_step(problem.loss_fn, problem.optimizer(ddp))
    problem.assert_same(problem.run(step, m, [*problem.batches(), (x[:7], y[:7])]), alone)


@pytest.mark.parametrize("form", ["shard_map", "pmap"])
def test_batch_norm_has_statistics_of_its_own_on_each_device_and_the_first_ones_are_kept(form):
    m, ref = problem.model(nn.BatchNorm2d), problem.model(nn.BatchNorm2d)
    x, y = problem.batches()[0]
    loss = make_step(m, FORMS[form])(x, y)
    parts = [slice(2 * i, 2 * i + 2) for i in range(4)]
    first, _ = jax.tree.map(np.asarray, nn.split(ref))
    losses, grads, buffers = [], [], []
    for part in parts:
        (value, new), grad = jax.value_and_grad(
            lambda p, part=part: (lambda out: (F.cross_entropy(out[0], y[part]), out[1]))(
                nn.pure(ref).apply(p, nn.split(ref)[1], x[part], train=True)
            ),
            has_aux=True,
        )(first)
        losses.append(value), grads.append(grad), buffers.append(new)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-6)
    expected = jax.tree.map(lambda p, *g: p - problem.RATE * np.mean(g, 0), first, *grads)
    for name, value in (tree.flatten(expected) | tree.flatten(buffers[0])).items():
        np.testing.assert_allclose(m.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    for shard in m[1].running_mean.addressable_shards:  # repeated in fact, not only in name
        np.testing.assert_array_equal(shard.data, m[1].running_mean)


@pytest.mark.parametrize("form", ["shard_map", "pmap", "jit"])
def test_what_is_sent_is_the_gradients_once_and_the_statistics(form):
    m = problem.model(nn.SyncBatchNorm)
    step = make_step(m, FORMS[form])
    sent = parallel.collectives(step.lower(*problem.batches()[0]).compile())
    assert {c.kind for c in sent} == {"all-reduce"}
    gradients = sum(4 * p.size for p in m.parameters())
    # Where XLA splits the loss, it sums the number of labels that the mean is over too.
    channels, loss = 4 * m[1].num_features, 8 if form == "jit" else 4
    # Forward the mean, then a correction to it and the squares; backward the last two.
    assert sum(c.bytes for c in sent) == gradients + loss + 5 * channels
    # Without synchronised statistics the first device's buffers go to the others instead: 2 statistics and a count.
    m = problem.model(nn.BatchNorm2d)
    sent = parallel.collectives(make_step(m, FORMS[form]).lower(*problem.batches()[0]).compile())
    if form != "jit":
        assert sum(c.bytes for c in sent) == gradients + loss + 2 * channels + m[1].num_batches_tracked.dtype.itemsize


def test_aux_keys_and_donation():
    m = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5))

    def loss_fn(m, x, scale, flag):
        out = m(x) * scale
        assert flag
        return out.mean(), {"rows": out, "mean": out.mean(), "count": (x > 0).sum(), "any": (x > 0).any()}

    x = np.ones((8, 3), np.float32)
    steps = {form: make_step(m, FORMS[form], loss_fn, has_aux=True) for form in ("shard_map", "pmap", "jit")}
    for step in steps.values():
        step(x, 2.0, True)
        before = [p._value for p in m.parameters()]
        loss, aux = step(x, 2.0, True)
        assert all(value.is_deleted() for value in before), "parameters are held twice"
        assert aux["rows"].shape == (8, 2)
        np.testing.assert_allclose([loss, aux["mean"]], np.mean(aux["rows"]), rtol=1e-5)
        assert aux["count"] == 24
        dropped = np.asarray(aux["rows"]).reshape(4, -1) == 0
        assert len({tuple(row) for row in dropped}) > 1, "every device dropped the same"


def test_arrays_that_are_spread_already_and_one_of_no_rows():
    m = problem.model(nn.SyncBatchNorm)
    step = make_step(m, LINE)
    x, y = problem.batches()[0]
    expected = problem.run(step, problem.model(nn.BatchNorm2d), [])  # nothing is run without a batch
    assert expected["losses"].size == 0
    first = step(*parallel.shard_batch((x, y), LINE["mesh"]))
    again = make_step(problem.model(nn.SyncBatchNorm), LINE)(x, y)
    np.testing.assert_allclose(first, again, rtol=1e-6)
    odd, labels = parallel.shard_batch((x[:7], y[:7]), LINE["mesh"])
    assert odd.sharding.is_fully_replicated
    assert parallel.shard_batch({"x": x}, LINE["mesh"])["x"].sharding.spec == P(("data",))
    assert np.isfinite(step(odd, labels))
    for bad in ((x, y[:4]), (x, np.float32(1))):
        with pytest.raises(ValueError, match="shard_batch: the arrays must have one number of rows"):
            parallel.shard_batch(bad, LINE["mesh"])
    with pytest.raises(ValueError, match=r"train_step: the arrays of a batch must have one number of rows, got sizes=\[4, 8\]"):
        step(x, y[:4])


def test_refusals():
    m = problem.model(nn.BatchNorm2d)
    with pytest.raises(ValueError, match="Placement: axis_name must be of axes of the mesh, got axis_name=.'x'"):
        make_step(m, LINE | {"axis_name": "x"})
    with pytest.raises(ValueError, match="Placement: several axes need a mesh"):
        parallel.Placement(axis_name=("a", "b"))
    with pytest.raises(ValueError, match="Placement: mapping must be one of 'shard_map', 'pmap', 'jit'"):
        make_step(m, LINE | {"mapping": "xmap"})
    with pytest.raises(ValueError, match="Placement: pmap needs a mesh of one axis"):
        make_step(m, GRID | {"axis_name": "rows", "mapping": "pmap"})
    other = nn.SyncBatchNorm.convert_sync_batchnorm(m, "other")
    with pytest.raises(RuntimeError, match="SyncBatchNorm: process_group must name mapped axes"):
        make_step(other, LINE)(*problem.batches()[0])


def test_groups_of_devices():
    """Statistics of pairs of devices, by collectives and by parts of the whole batch."""
    results = []
    for form in ("shard_map", "jit"):
        m = nn.SyncBatchNorm.convert_sync_batchnorm(problem.model(nn.BatchNorm2d), ("data", [[0, 3], [1, 2]]))
        results.append(problem.run(make_step(m, FORMS[form]), m, problem.batches(5)))
    problem.assert_same(*results)
    along = []
    for form in ("grid", "grid by jit"):
        m = nn.SyncBatchNorm.convert_sync_batchnorm(problem.model(nn.BatchNorm2d), "columns")
        along.append(problem.run(make_step(m, FORMS[form]), m, problem.batches(5)))
    problem.assert_same(*along)
    assert abs(along[0]["losses"] - results[0]["losses"]).max() > 1e-4


class TestSharding:
    MESH = jax.make_mesh((4, 2), ("data", "model"))
    RULES: ClassVar = {"1.weight": P("model", None), "3.weight": P(None, "model"), "*": parallel.fsdp("data")}

    def build(self, **kw):
        return nn.Sequential(nn.Embedding(512, 64, **kw), nn.Linear(64, 128, **kw), nn.ReLU(), nn.Linear(128, 6, **kw))

    def test_rules_and_initial_values(self):
        net = L.Sequential(L.Embedding(512, 64), L.Linear(64, 128), L.ReLU(), L.Linear(128, 6))
        params, _ = parallel.init_sharded(net, jax.random.key(1), self.MESH, self.RULES)
        specs = {name: value.sharding.spec for name, value in tree.flatten(params).items()}
        assert specs == {
            "0.weight": P("data"),
            "1.weight": P("model", None),
            "1.bias": P(),
            "3.weight": P(None, "model"),
            "3.bias": P(),
        }
        assert [*specs] == [*tree.flatten(net.init(jax.random.key(1))[0])]
        jax.tree.map(np.testing.assert_array_equal, params, net.init(jax.random.key(1))[0])
        assert jax.jit(net.apply)(params, {}, np.arange(8))[0].shape == (8, 6)
        lazy = L.Sequential(L.LazyLinear(128), L.ReLU())
        params, _ = parallel.init_sharded(lazy, jax.random.key(1), self.MESH, {"0.weight": P("model")}, jnp.ones((1, 64), np.float32))
        assert params["0"]["weight"].sharding.spec == P("model")
        assert params["0"]["weight"].shape == (128, 64)
        default = parallel.shardings({"table": jax.ShapeDtypeStruct((6, 8192), np.float32)}, self.MESH)
        assert default["table"].spec == P(None, "data")

    def test_no_device_holds_a_whole_table_while_it_is_made(self):
        table = L.Embedding(4096, 64)
        where = parallel.shardings(jax.eval_shape(table.init, jax.random.key(0))[0], self.MESH)
        text = jax.jit(lambda key: table.init(key)[0], out_shardings=where).lower(jax.random.key(0)).compile().as_text()
        assert "[1024,64]" in text
        assert "[4096,64]" not in text
        assert "262144]" not in text

    def test_a_sharded_run_is_the_run_of_one_device(self):
        m = parallel.shard(self.build(device="meta"), self.MESH, self.RULES, key=jax.random.key(0))
        ref = self.build()
        ref.load_state_dict({name: np.asarray(value) for name, value in m.state_dict().items()})
        optimizers = [nn.optim.Optimizer(model, optax.adam(1e-2)) for model in (m, ref)]

        def loss_fn(m, x, y):
            return F.cross_entropy(m(x), y)

        step = parallel.train_step(loss_fn, optimizers[0], mesh=self.MESH, mapping="jit")
        x, y = np.arange(16) * 7, np.arange(16) % 6
        plain = nn.train_step(loss_fn, optimizers[1])
        for rows in (16, 16, 6, 5):
            np.testing.assert_allclose(step(x[:rows], y[:rows]), plain(x[:rows], y[:rows]), rtol=1e-5)
        for (name, p), q in zip(m.named_parameters(), ref.parameters(), strict=True):
            np.testing.assert_allclose(p, q, rtol=1e-4, atol=1e-5, err_msg=name)
        held = {str(x.sharding.spec) for x in jax.tree.leaves(optimizers[0]._state) if x.ndim == 2}
        assert held == {str(P("data")), str(P("model")), str(P(None, "model"))}
        assert m[1].weight.sharding.is_equivalent_to(NamedSharding(self.MESH, P("model", None)), 2)
        spread = parallel.shard_batch((x, y), self.MESH)
        np.testing.assert_allclose(step(*spread), plain(x, y), rtol=1e-5)
        optimizers[0].load_state_dict(optimizers[0].state_dict())
        assert {str(x.sharding.spec) for x in jax.tree.leaves(optimizers[0]._state) if x.ndim == 2} == held
        with pytest.raises(ValueError, match='train_step: only mapping="jit" takes sharded parameters'):
            parallel.train_step(loss_fn, optimizers[0], mesh=self.MESH)(x, y)

    def test_a_model_that_has_values_is_spread_in_place(self):
        m = self.build()
        before = {name: np.asarray(value) for name, value in m.state_dict().items()}
        assert parallel.shard(m, self.MESH) is m
        assert m[0].weight.sharding.spec == P("data")
        for name, value in before.items():
            np.testing.assert_array_equal(m.state_dict()[name], value)

    def test_half_an_abstract_model_is_refused(self):
        with pytest.raises(ValueError, match="shard: all parameters and buffers must be abstract, or none"):
            parallel.shard(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4, device="meta")), self.MESH)

    @pytest.mark.parametrize(
        ("rules", "message"),
        [
            ({"9.*": P()}, "shardings: every pattern must match a name, got pattern='9.*'"),
            ({"*": P("data", None, None)}, "shardings: a specification must not have more dimensions than its array"),
            ({"*": P("x")}, "shardings: a specification must name axes of the mesh"),
            ({"3.weight": P("data")}, r"shardings: the axes of a specification must divide.*name='3.weight', shape=\(6, 128\)"),
            ({"*": parallel.fsdp("x")}, "fsdp: axis must be one of the mesh"),
        ],
    )
    def test_rules_that_do_not_fit_are_refused(self, rules, message):
        with pytest.raises(ValueError, match=message):
            parallel.shard(self.build(), self.MESH, rules)


def test_collectives_are_read_from_the_text():
    text = """
      %a = f32[8,4]{1,0} all-reduce(%x), channel_id=1
      ROOT %b = (bf16[8]{0}, /*index=1*/pred[2]{0}, f8e4m3fn[4]{0}) all-reduce(%x, %y), channel_id=2
      %c = (f32[2]{0}, f32[8]{0}) all-gather-start(%x), channel_id=3
      %d = f32[8]{0} all-gather-done(%c)
      %e = f32[4]{0} add(%all-reduce.1, %y)
    """
    assert [(c.kind, c.bytes) for c in parallel.collectives(text)] == [("all-reduce", 128), ("all-reduce", 22), ("all-gather", 32)]


def test_gradients_of_a_module_that_only_its_root_may_average():
    ddp = parallel.DistributedDataParallel(nn.Linear(3, 2), [0, 1])
    x = jnp.ones((4, 3), np.float32)
    wrapped = nn.Sequential(ddp)
    with pytest.raises(RuntimeError, match="DistributedDataParallel: train it as the model of jnn.backward"):
        nn.backward(lambda m, x: m(x).sum(), wrapped, x)
    with pytest.raises(RuntimeError, match="must have a parameter that requires a gradient"):
        parallel.DistributedDataParallel(nn.ReLU())
    with pytest.raises(NotImplementedError, match="DistributedDataParallel: mixed_precision can only be None"):
        parallel.DistributedDataParallel(nn.Linear(3, 2), mixed_precision=object())
    for copied in (copy.deepcopy(ddp), pickle.loads(pickle.dumps(ddp))):
        nn.backward(lambda m, x: m(x).sum(), copied, x)
        assert copied.module.weight.grad is not None
        assert ddp.module.weight.grad is None
    with pytest.warns(FutureWarning, match="is called DistributedDataParallel now"):
        parallel.DistributedDataParallelCPU(nn.Linear(3, 2))


def test_accumulated_gradients():
    """Halves of a batch accumulated without averaging, as torch's no_sync has it, and one reduction at the end."""
    m, ref = problem.model(nn.SyncBatchNorm).eval(), problem.model(nn.BatchNorm2d).eval()
    ddp = parallel.DistributedDataParallel(m, [0, 1])
    x, y = problem.batches()[0]
    with ddp.no_sync():
        nn.backward(problem.loss_fn, ddp, x[:4], y[:4])
        with pytest.raises(RuntimeError, match=r"a step inside no_sync\(\) would part the processes"):
            nn.train_step(problem.loss_fn, problem.optimizer(ddp))(x, y)
    loss = nn.backward(problem.loss_fn, ddp, x[4:], y[4:])
    nn.backward(problem.loss_fn, ref, x[:4], y[:4])
    np.testing.assert_allclose(loss, nn.backward(problem.loss_fn, ref, x[4:], y[4:]), rtol=1e-6)
    for p, q in zip(m.parameters(), ref.parameters(), strict=True):
        np.testing.assert_allclose(p.grad, q.grad, rtol=1e-5, atol=1e-6)
    _, grads = nn.value_and_grad(problem.loss_fn)(ddp, x, y)
    _, expected = nn.value_and_grad(problem.loss_fn)(ref, x, y)
    for g, e in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-6)
