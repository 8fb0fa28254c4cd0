"""What each process of tests/test_distributed.py runs, under ``python -m jnn.parallel.launch``."""

from __future__ import annotations

import pathlib
import sys

import jax
import numpy as np
import optax
import parallel_problem as problem
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import jnn as nn
import jnn.functional as F
from jnn import parallel


def own(rows: np.ndarray) -> np.ndarray:
    return np.split(rows, jax.process_count())[jax.process_index()]


def own_batches() -> list[tuple[np.ndarray, ...]]:
    return [tuple(map(own, batch)) for batch in problem.batches()]


def synchronized(mapping: str) -> dict[str, np.ndarray]:
    """Two devices a process; the last batch is smaller, and of its 7 rows the first process has 5."""
    model = problem.model(nn.SyncBatchNorm)
    step = parallel.train_step(problem.loss_fn, problem.optimizer(model), mapping=mapping, uneven=True)
    x, y = problem.batches()[-1]
    part = slice(0, 5) if jax.process_index() == 0 else slice(5, 7)
    return problem.run(step, model, [*own_batches(), (x[part], y[part])])


def whole_batches() -> dict[str, np.ndarray]:
    """Every process gives the whole batch."""
    model = problem.model(nn.SyncBatchNorm)
    step = parallel.train_step(problem.loss_fn, problem.optimizer(model), mapping="jit")
    mesh = Mesh(np.array(jax.devices()), ("data",))
    x, y = problem.batches()[-1]
    return problem.run(step, model, [parallel.shard_batch(batch, mesh) for batch in (*problem.batches(), (x[:7], y[:7]))])


def distributed(**options: bool) -> dict[str, np.ndarray]:
    """torch's way: one device a process, statistics of its own, other initial values on all but the first."""
    model = problem.model(nn.BatchNorm2d)
    if jax.process_index():
        model[0].weight.data = np.zeros(model[0].weight.shape, np.float32)
    ddp = parallel.DistributedDataParallel(model, device_ids=[0], **options)
    return problem.run(nn.train_step(problem.loss_fn, problem.optimizer(ddp)), model, own_batches())


def accumulated() -> dict[str, np.ndarray]:
    """Two halves of a batch, one reduction, then torch's optimizer step."""
    model = problem.model(nn.BatchNorm2d)
    ddp = parallel.DistributedDataParallel(model, device_ids=[0])
    optimizer = problem.optimizer(ddp)
    for x, y in own_batches()[:5]:
        optimizer.zero_grad()
        with ddp.no_sync():
            nn.backward(problem.loss_fn, ddp, x[:2], y[:2])
        nn.backward(problem.loss_fn, ddp, x[2:], y[2:])
        optimizer.step()
    return {name: np.asarray(value) for name, value in model.state_dict().items()}


def sharded() -> dict[str, np.ndarray]:
    """Parameters spread over both processes."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"))
    nn.manual_seed(0)
    model = nn.Sequential(nn.Embedding(64, 8, device="meta"), nn.Linear(8, 3, device="meta"))
    parallel.shard(model, mesh, {"0.weight": P("data", None), "1.*": P()})
    assert {s.data.shape for s in model[0].weight.addressable_shards} == {(32, 8)}
    optimizer = nn.optim.Optimizer(model, optax.adam(1e-2))
    step = parallel.train_step(lambda m, x, y: F.cross_entropy(m(x), y), optimizer, mesh=mesh, mapping="jit")
    losses = [np.asarray(step(own(np.arange(8) * 5), own(np.arange(8) % 3))) for _ in range(5)]
    return {"losses": np.array(losses)}


def check_aux() -> None:
    """Scalars are those of all processes, rows those of one."""

    def loss_fn(model, x, y):
        out = model(x)
        return F.cross_entropy(out, y), {"rows": out, "mean": out.mean(), "count": (y >= 0).sum()}

    x, y = problem.batches()[0]
    whole = problem.model(nn.BatchNorm2d)(x)
    step = parallel.train_step(loss_fn, problem.optimizer(problem.model(nn.SyncBatchNorm)), has_aux=True)
    _, aux = step(own(x), own(y))
    np.testing.assert_allclose(aux["rows"], own(whole), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(aux["mean"], whole.mean(), rtol=1e-4)
    assert aux["count"] == len(y)


def refusals() -> None:
    i = jax.process_index()
    for make, message in (
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU() if i else nn.Tanh()), "process 1 has another model than process 0: '1: ReLU()'"),
        (
            lambda: nn.Linear(3, 4).requires_grad_(True) if i else frozen(),
            "parameter bias: float32[4]', not 'parameter bias: float32[4], frozen'",
        ),
    ):
        try:
            parallel.DistributedDataParallel(make())
        except RuntimeError as error:
            assert message in str(error), error
        else:
            raise AssertionError("not refused")
    step = parallel.train_step(problem.loss_fn, problem.optimizer(problem.model(nn.BatchNorm2d)))
    try:
        step(*(a[:3] for a in problem.batches()[0]))
    except ValueError as error:
        assert "the devices of a process must divide its rows" in str(error), error
    else:
        raise AssertionError("not refused")


def frozen() -> nn.Module:
    layer = nn.Linear(3, 4)
    layer.bias.requires_grad = False
    return layer


def main() -> None:
    out = pathlib.Path(sys.argv[1])
    assert parallel.initialize()  # joined before the script started
    assert (jax.process_count(), jax.local_device_count()) == (2, 2)
    results = {
        "shard_map": synchronized("shard_map"),
        "pmap": synchronized("pmap"),
        "whole": whole_batches(),
        "distributed": distributed(),
        "own buffers": distributed(broadcast_buffers=False),
        "accumulated": accumulated(),
        "sharded": sharded(),
    }
    check_aux()
    refusals()
    flat = {f"{run}:{name}": value for run, result in results.items() for name, value in result.items()}
    np.savez(out / f"process{jax.process_index()}.npz", **flat)
    sys.stdout.write("done\n")


if __name__ == "__main__":
    main()
