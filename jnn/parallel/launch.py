"""Start the processes of one run on this machine, and end them together.

    python -m jnn.parallel.launch --nproc 2 train.py --epochs 3
    python -m jnn.parallel.launch --nproc 2 --cpu-devices 4 -m package.train

Each process has joined the run (``jax.distributed``) before the script starts. Lines that they print are forwarded behind
their number. When one fails the others are ended, and this exits with its status after showing what it last wrote to its
standard error. SIGINT and SIGTERM are passed on. Without ``--nproc`` the script runs here and now, and JAX finds out where it
is: that is for scripts started by SLURM, Open MPI, Kubernetes or on cloud TPUs, which start the processes themselves.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO, Any

from .distributed import CONNECT, COUNT, HEARTBEAT, INDEX
from .worker import PIPES

_TAIL = 40  # lines of a failed process that are shown again
# How processes end because another has; of those that end within so many seconds, one that ended otherwise is the cause, or
# else the first whose script failed or that ended.
_AFTER, _SETTLE = (1, -signal.SIGABRT), 0.2
_FORCED_DEVICES = re.compile(r"--xla_force_host_platform_device_count=\S*")
_write = threading.Lock()


class _Process:
    """One process of the run, in a group of its own; ``ended`` gets its number when it ends, at ``moment``."""

    def __init__(
        self, number: int, command: Sequence[str], env: dict[str, str], pipes: Sequence[int], ended: queue.SimpleQueue[Any]
    ) -> None:
        self.number, self.tail, self.moment = number, collections.deque[str](maxlen=_TAIL), float("inf")
        self._popen = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            bufsize=1,
            pass_fds=pipes,
            start_new_session=True,
        )
        streams = (self._popen.stdout, sys.stdout, None), (self._popen.stderr, sys.stderr, self.tail)
        self._pumps = [threading.Thread(target=self._forward, args=stream, daemon=True) for stream in streams]
        for pump in self._pumps:
            pump.start()
        self._end = threading.Thread(target=self._wait, args=(ended,), daemon=True)
        self._end.start()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._popen.returncode

    def _forward(self, source: IO[str], sink: IO[str], tail: collections.deque[str] | None) -> None:
        for line in source:
            if tail is not None:
                tail.append(line)
            with _write:
                sink.write(f"[{self.number}] {line}" if line.endswith("\n") else f"[{self.number}] {line}\n")
                sink.flush()

    def _wait(self, ended: queue.SimpleQueue[Any]) -> None:
        if hasattr(os, "waitid"):
            # Not reaped yet, its number cannot be another group's when what it has left behind is ended.
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            self.moment = time.monotonic()
            self.send(signal.SIGKILL)
        self._popen.wait()
        ended.put(self.number)

    def send(self, number: int) -> None:
        """Signal the process and its children."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def wait(self, seconds: float) -> None:
        """Let it end."""
        self._end.join(timeout=seconds)

    def drain(self) -> None:
        """Forward what it has still written."""
        for pump in self._pumps:
            pump.join(timeout=1)

    def story(self) -> str:
        """How it ended."""
        self.drain()
        status = self.status or 0
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
        last = "".join(f"    {line.rstrip()}\n" for line in self.tail)
        return f"launch: process {self.number} {how}" + (f"; it last wrote:\n{last}" if last else "\n")


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _environment(options: argparse.Namespace, local: int, address: str, pipes: Sequence[int]) -> dict[str, str]:
    env = os.environ | {
        "JAX_COORDINATOR_ADDRESS": address,
        COUNT: str(options.nproc * options.nodes),
        INDEX: str(options.node * options.nproc + local),
        CONNECT: str(options.connect_timeout),
        HEARTBEAT: str(options.heartbeat_timeout),
        PIPES: " ".join(map(str, pipes)),
        "PYTHONUNBUFFERED": "1",
    }
    if options.nodes == 1:
        env["JAX_COORDINATOR_BIND_ADDRESS"] = address
    if options.cpu_devices:
        env |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(options.cpu_devices)}
        env["XLA_FLAGS"] = _FORCED_DEVICES.sub("", env.get("XLA_FLAGS", "")).strip()
    if options.gpus:
        env["JAX_LOCAL_DEVICE_IDS"] = ",".join(str(local * options.gpus + i) for i in range(options.gpus))
    return env


def _exit_status(process: _Process) -> int:
    status = process.status or 0
    return status if status >= 0 else 128 - status


def _cause(process: _Process, others: Sequence[_Process], failures: int, grace: float) -> _Process:
    """Of a process that has failed and ``others``, the one of which the rest died. ``failures`` is where scripts' are reported."""
    time.sleep(_SETTLE)
    moments = {}
    with contextlib.suppress(BlockingIOError):
        moments = {int(number): float(moment) for number, moment in map(str.split, os.read(failures, 1 << 16).decode().splitlines())}
    for other in others:
        if other.number in moments:
            other.wait(grace)
    gone = [process, *(p for p in others if p.status)]
    return min(gone, key=lambda p: (p.status in _AFTER, moments.get(p.number, p.moment)))


def _supervise(processes: list[_Process], ended: queue.SimpleQueue[Any], failures: int, grace: float) -> int:
    """Wait until all have ended; once one has failed, or a signal has come, end the others. The status to exit with."""
    running = {p.number: p for p in processes}
    status, deadline = 0, float("inf")
    while running:
        try:
            event = ended.get(timeout=max(deadline - time.monotonic(), 0) if deadline < float("inf") else None)
        except queue.Empty:
            deadline = float("inf")
            for process in running.values():
                process.send(signal.SIGKILL)
            continue
        passed_on = None
        if isinstance(event, signal.Signals):
            status, passed_on = status or 128 + event, event
        else:
            process = running.pop(event)
            if process.status and not status:
                process = _cause(process, [*running.values()], failures, grace)
                status = _exit_status(process)
                passed_on, story = signal.SIGTERM, process.story()
                with _write:
                    sys.stderr.write(story)
        if passed_on is not None:
            for process in running.values():
                process.send(passed_on)
            deadline = min(deadline, time.monotonic() + grace)
    return status


def launch(options: argparse.Namespace) -> int:
    """Run the processes; the status to exit with."""
    address = options.coordinator or f"127.0.0.1:{options.port or _free_port()}"
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
    # Held open by this process alone: when it is gone, however it went, the others read its end and go too.
    reads, writes = os.pipe()
    failures, fails = os.pipe()
    os.set_blocking(failures, False)
    command = [sys.executable, "-m", "jnn.parallel.worker", *options.command]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda number, _: ended.put(signal.Signals(number)))
    processes: list[_Process] = []
    for local in range(options.nproc):
        env = _environment(options, local, address, (reads, fails))
        processes.append(_Process(options.node * options.nproc + local, command, env, (reads, fails), ended))
    try:
        return _supervise(processes, ended, failures, options.grace)
    finally:
        for process in processes:
            if process.status is None:
                process.send(signal.SIGKILL)
            process.drain()
        for end in (reads, writes, failures, fails):
            os.close(end)


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jnn.parallel.launch", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nproc", type=int, help="how many processes to start here; without it the script runs as it is")
    parser.add_argument("--cpu-devices", type=int, metavar="N", help="use the CPU, as N devices a process")
    parser.add_argument("--gpus", type=int, metavar="N", help="give each process N GPUs of its own")
    parser.add_argument("--nodes", type=int, default=1, help="on how many machines this is run, each with as many processes")
    parser.add_argument("--node", type=int, default=0, help="which of them this is, from 0")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 can be reached; needed with --nodes")
    parser.add_argument("--port", type=int, help="the coordinator's port; a free one is found without it")
    parser.add_argument("--connect-timeout", type=int, default=120, metavar="S", help="how long to wait for the others at the start")
    parser.add_argument("--heartbeat-timeout", type=int, default=100, metavar="S", help="when a machine that is silent counts as gone")
    parser.add_argument("--grace", type=float, default=5.0, metavar="S", help="how long processes may take to end before they are killed")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="script.py ... | -m module ...")
    options = parser.parse_args(args)
    if not options.command or options.command == ["-m"]:
        parser.error("name a script, or -m and a module")
    if options.nproc is None:
        os.execv(sys.executable, [sys.executable, "-m", "jnn.parallel.worker", *options.command])
    if options.nproc < 1 or options.nodes < 1 or not 0 <= options.node < options.nodes:
        parser.error("--nproc and --nodes must be at least 1, and --node below --nodes")
    if options.nodes > 1 and not options.coordinator:
        parser.error("--nodes needs --coordinator, the same on all of them")
    return launch(options)


if __name__ == "__main__":
    sys.exit(main())
