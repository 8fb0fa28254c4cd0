"""Several processes: the same run as on one device or by torch's DistributedDataParallel, and what the launcher does."""

from __future__ import annotations

import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

import jnn as nn
import jnn.functional as F
from jnn import parallel
from jnn.parallel import distributed, launch, worker

from . import parallel_problem as problem

HERE = pathlib.Path(__file__).parent
LAUNCH = [sys.executable, "-m", "jnn.parallel.launch", "--nproc", "2", "--cpu-devices"]
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiling is most of what these runs do
PATIENCE = 240  # seconds after which a hanging run fails the test


def by_process(run):
    """``(process 0's, process 1's)`` results, by run and by name."""
    split: tuple[dict, dict] = ({}, {})
    for found, archive in zip(split, run, strict=True):
        for key, value in archive.items():
            kind, _, name = key.partition(":")
            found.setdefault(kind, {})[name] = value
    return split


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Results of two processes of two devices, and of two of torch's; of several pytest workers one makes them for all."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    folder = tmp_path_factory.mktemp("runs") if alone else tmp_path_factory.getbasetemp().parent / "runs"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "process1.npz").exists():
            run_both(folder)
    archives = {name: dict(np.load(folder / f"{name}.npz")) for name in ("process0", "process1", "torch0", "torch1")}
    return by_process([archives["process0"], archives["process1"]]), by_process([archives["torch0"], archives["torch1"]])


def run_both(folder):
    (folder / "rendezvous").unlink(missing_ok=True)  # of a run that failed
    images, labels = map(np.stack, zip(*problem.batches(), strict=True))
    state = {f"state:{n}": np.asarray(v) for n, v in problem.model(nn.BatchNorm2d).state_dict().items()}
    np.savez(folder / "data.npz", images=images, labels=labels, **state)
    theirs = [sys.executable, str(HERE / "torch_ddp_worker.py")]
    options = [str(folder), str(problem.RATE), str(problem.MOMENTUM)]
    torches = [subprocess.Popen([*theirs, str(rank), *options], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    for process in torches:
        _, error = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, error
    command = [*LAUNCH, "2", str(HERE / "parallel_worker.py"), str(folder)]
    ours = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=os.environ | QUICK)
    assert ours.returncode == 0, ours.stderr
    assert {"[0] done", "[1] done"} <= set(ours.stdout.splitlines())


@pytest.mark.parametrize("form", ["shard_map", "pmap", "whole"])
def test_two_processes_are_the_run_of_one_device(runs, form):
    m = problem.model(nn.BatchNorm2d)
    x, y = problem.batches()[-1]
    alone = problem.run(nn.train_step(problem.loss_fn, problem.optimizer(m)), m, [*problem.batches(), (x[:7], y[:7])])
    for ours in runs[0]:
        problem.assert_same(ours[form], alone)


@pytest.mark.parametrize("kind", ["distributed", "own buffers", "accumulated"])
def test_without_synchronised_statistics_it_is_torchs_run(runs, kind):
    ours, theirs = runs
    for mine, expected in zip(ours, theirs, strict=True):
        result = expected[kind]
        if kind == "distributed":
            # The others get the first process's buffers at the next step in torch, and at the end of this one here.
            result = result | {n: v for n, v in theirs[0][kind].items() if "running" in n}
        elif kind == "accumulated":
            # A call on half a batch has moved the buffers of its own process; torch's loss is of the second half alone.
            result = {n: v for n, v in result.items() if n in mine[kind] and (expected is theirs[0] or "running" not in n)}
        problem.assert_same({n: mine[kind][n] for n in result}, result)


def test_parameters_spread_over_processes(runs):
    nn.manual_seed(0)
    m = nn.Sequential(nn.Embedding(64, 8, device="meta"), nn.Linear(8, 3, device="meta"))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    parallel.shard(m, mesh, {"*": parallel.fsdp("data", min_size=512)})
    step = parallel.train_step(lambda m, x, y: F.cross_entropy(m(x), y), nn.optim.Optimizer(m, optax.adam(1e-2)), mesh=mesh, mapping="jit")
    losses = [float(step(np.arange(8) * 5, np.arange(8) % 3)) for _ in range(5)]
    for ours in runs[0]:
        np.testing.assert_allclose(ours["sharded"]["losses"], losses, rtol=1e-5)


# The launcher

KILLED = """
import os, pathlib, signal, subprocess, sys
import jax, jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec as P
import numpy as np
out = pathlib.Path(sys.argv[1])
child = subprocess.Popen(["sleep", "600"])
(out / f"{jax.process_index()}.pids").write_text(f"{os.getpid()} {child.pid}")
mesh = Mesh(np.array(jax.devices()), ("data",))
sum_all = jax.jit(jax.shard_map(lambda x: jax.lax.psum(x, "data"), mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False))
for i in range(10**9):
    if i == 3 and jax.process_index() == 1:
        print("last words", file=sys.stderr)
        if sys.argv[2] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if sys.argv[2] == "raise":
            raise KeyError("lost")
        (out / "ready").touch()
    sum_all(np.ones(4, np.float32)).block_until_ready()
"""


def assert_gone(folder: pathlib.Path, patience: float = 10) -> None:
    """No process that a run has written down is there any more."""
    pids = [int(pid) for file in folder.glob("*.pids") for pid in file.read_text().split()]
    assert len(pids) == 4
    deadline = time.monotonic() + patience
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def script(tmp_path):
    (tmp_path / "script.py").write_text(KILLED)
    return [*LAUNCH, "1", "--grace", "2", str(tmp_path / "script.py"), str(tmp_path)]


@pytest.mark.parametrize(("how", "status", "said"), [("kill", 137, "was killed by SIGKILL"), ("raise", 1, "exited with status 1")])
def test_when_one_process_dies_the_others_are_ended_and_its_error_is_shown(script, tmp_path, how, status, said):
    run = subprocess.run([*script, how], capture_output=True, text=True, timeout=PATIENCE)
    assert run.returncode == status, run.stderr
    assert_gone(tmp_path)
    _, _, story = run.stderr.partition(f"launch: process 1 {said}; it last wrote:")
    assert "last words" in story
    assert ("KeyError: 'lost'" in story) == (how == "raise")


@pytest.mark.parametrize(("statuses", "cause"), [((1, 1, None), 1), ((1, 1, -9), 2), ((-6, 1, None), 0), ((1, None, 3), 2)], ids=str)
def test_the_cause_is_what_failed_first_and_not_what_ended_first(statuses, cause):
    """Processes end at 3, 4 and 5 seconds; the script of 1 has failed at 3.5, that of 0, if it did, at 3.8."""
    reads, writes = os.pipe()
    os.set_blocking(reads, False)
    if statuses[1]:
        os.write(writes, b"1 3.5\n0 3.8\n" if statuses[0] == 1 else b"1 3.5\n")
    processes = [SimpleNamespace(number=i, status=s, moment=3.0 + i, wait=lambda _: None) for i, s in enumerate(statuses)]
    assert launch._cause(processes[0], processes[1:], reads, 0).number == cause


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_signals_are_passed_on_and_nothing_outlives_the_launcher(script, tmp_path, number, status):
    run = subprocess.Popen([*script, "wait"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        assert run.poll() is None
        time.sleep(0.1)
    run.send_signal(number)
    assert run.wait(timeout=PATIENCE) == status
    assert_gone(tmp_path)


def test_arguments(capsys, monkeypatch):
    for bad, message in (
        ([], "name a script"),
        (["--nproc", "0", "x.py"], "--nproc and --nodes must be at least 1"),
        (["--nproc", "2", "--nodes", "2", "x.py"], "--nodes needs --coordinator"),
    ):
        with pytest.raises(SystemExit):
            launch.main(bad)
        assert message in capsys.readouterr().err
    started = []
    monkeypatch.setattr(os, "execv", lambda *args: started.append(args) or sys.exit(0))
    with pytest.raises(SystemExit):
        launch.main(["train.py", "--nproc", "7"])  # the script's own argument
    assert started == [(sys.executable, [sys.executable, "-m", "jnn.parallel.worker", "train.py", "--nproc", "7"])]


def test_it_stays_out_of_the_way_of_clusters(monkeypatch):
    """Beside the launcher's variables those of a cluster mean nothing; without them JAX looks for itself."""
    seen = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: seen.append(options))
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: False)
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "64", "SLURM_PROCID": "3"}.items():
        monkeypatch.setenv(name, value)
    assert parallel.initialize()
    assert parallel.initialize(coordinator_address="a:1", num_processes=2, process_id=0)
    assert seen == [{}, {"coordinator_address": "a:1", "num_processes": 2, "process_id": 0}]
    for name, value in {distributed.COUNT: "2", distributed.INDEX: "1", distributed.CONNECT: "9", distributed.HEARTBEAT: "8"}.items():
        monkeypatch.setenv(name, value)
    assert parallel.initialize()
    expected = {"num_processes": 2, "process_id": 1, "initialization_timeout": 9, "heartbeat_timeout_seconds": 8}
    assert seen[-1] == expected | {"cluster_detection_method": "deactivate"}


def test_without_a_cluster_this_is_the_only_process(monkeypatch):
    def nothing_found(**options):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", nothing_found)
    assert not parallel.initialize()
    with pytest.raises(ValueError, match="coordinator_address should be defined"):
        parallel.initialize(num_processes=2)


def test_a_script_runs_as_python_would_run_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "beside.py").write_text("value = 3")
    (tmp_path / "script.py").write_text("import sys, beside; print(__name__, beside.value, sys.argv[1:])")
    monkeypatch.setattr(sys, "path", ["", *sys.path[1:]])
    monkeypatch.setattr(sys, "argv", ["worker", str(tmp_path / "script.py"), "a"])
    monkeypatch.setattr(distributed, "initialize", lambda: False)
    worker.main()
    monkeypatch.setattr(sys, "argv", ["worker", "-m", "beside_too", "b"])
    (tmp_path / "beside_too.py").write_text("import sys; print(__name__, sys.argv)")
    monkeypatch.chdir(tmp_path)
    worker.main()
    assert capsys.readouterr().out.splitlines() == ["__main__ 3 ['a']", f"__main__ ['{tmp_path}/beside_too.py', 'b']"]


# The example

EXAMPLE = [str(HERE.parent / "examples" / "distributed_digits.py"), "--images", "512", "--batch-size", "128"]


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """Runs the example; what one run compiles the next need not."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | cache | QUICK

    def run(before, *options):
        command = [*before, *EXAMPLE, *map(str, options)]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=env)

    return run


def test_a_killed_run_resumes_and_ends_with_the_weights_of_an_undisturbed_one(example, tmp_path):
    two, options = [*LAUNCH, "1", "--grace", "2"], ["--epochs", 2]
    killed = example(two, *options, "--out", tmp_path / "killed", "--die-at", 5)
    assert killed.returncode == 137, killed.stderr
    assert "launch: process 1 was killed by SIGKILL" in killed.stderr
    resumed = example(two, *options, "--out", tmp_path / "killed")
    assert resumed.returncode == 0, resumed.stderr
    assert "[0] resumed after epoch 1" in resumed.stdout
    undisturbed = example([sys.executable], *options, "--out", tmp_path / "alone", "--devices", 2)
    assert undisturbed.returncode == 0, undisturbed.stderr
    got, expected = (dict(np.load(tmp_path / kind / "weights.npz")) for kind in ("killed", "alone"))
    problem.assert_same(got, expected, rtol=1e-6)


@pytest.mark.parametrize("style", ["data-parallel", "mesh"])
def test_the_other_styles_learn(example, tmp_path, style):
    shown = example([sys.executable, "-W", "error"], "--epochs", 1, "--out", tmp_path, "--style", style, "--devices", 4)
    assert shown.returncode == 0, shown.stderr
    assert float(shown.stdout.rpartition("test accuracy ")[2].split()[0]) > 25  # of ten digits; a second epoch would bring 70
