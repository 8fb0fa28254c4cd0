"""Loading a large .pt file: jnn.io against ``torch.load(mmap=True)`` and a copy of every tensor, in time and memory.

    python benchmarks/io.py [--gigabytes 1.0] [--repeats 5] [--directory DIR]

Each load runs in a process of its own, with the file in the page cache, the ways in turn; the ratio is that of the medians.
Memory is what the process grows by from before the load to its peak (Linux): ``resident``, with the pages of the mapped
file, which the system can take back at any time, and ``anonymous``, without them.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

TENSOR = (1024, 4096)  # 16 MiB of float32


def memory() -> dict[str, int]:
    """Resident and anonymous bytes of this process."""
    status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    return {name: int(status[field].split()[0]) << 10 for name, field in (("resident", "VmRSS"), ("anonymous", "RssAnon"))}


class Peak:
    """The largest memory seen by a thread that keeps looking."""

    def __enter__(self) -> Peak:
        self.before, self.peak, self._done = memory(), memory(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.001):
            now = memory()
            self.peak = {name: max(self.peak[name], now[name]) for name in now}

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()
        now = memory()
        self.growth = {name: max(self.peak[name], now[name]) - self.before[name] for name in now}


def torch_copy(path: str) -> Callable[[], Any]:
    import torch

    torch.set_num_threads(1)
    return lambda: {name: tensor.clone() for name, tensor in torch.load(path, mmap=True, weights_only=True).items()}


def jnn_arrays(path: str) -> Callable[[], Any]:
    import jax

    import jnn

    jax.devices()
    return lambda: jnn.io.load(path, device="cpu")


def jnn_verified(path: str) -> Callable[[], Any]:
    import jax

    import jnn

    jax.devices()
    return lambda: jnn.io.load(path, device="cpu", verify=True)


def jnn_lazy(path: str) -> Callable[[], Any]:
    import jnn

    return lambda: jnn.io.load(path)


def jnn_module(path: str) -> Callable[[], Any]:
    import jnn as nn

    model = nn.Sequential(*(nn.Linear(TENSOR[1], TENSOR[0], bias=False, device="meta") for _ in nn.io.load(path)))
    return lambda: (nn.io.load_into(model, path, assign=True), model)


WAYS = {
    "torch and a copy": torch_copy,
    "jnn arrays": jnn_arrays,
    "jnn verified": jnn_verified,
    "jnn lazily": jnn_lazy,
    "jnn into a module": jnn_module,
}


def measure(way: str, path: str, what: str) -> dict[str, float]:
    """Seconds, or bytes of memory; apart, for looking at the memory takes time."""
    load = WAYS[way](path)
    with open(path, "rb") as file:
        while file.read(1 << 24):
            pass
    if what == "memory":
        with Peak() as peak:
            load()
        return peak.growth
    start = time.perf_counter()
    load()
    return {"seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--directory", help="where the file is written")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    parser.add_argument("--what", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.path, options.what)))
        return
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        path = os.path.join(folder, "large.pt")
        import torch

        count = max(round(options.gigabytes * 1e9 / (4 * TENSOR[0] * TENSOR[1])), 1)
        torch.save({f"{i}.weight": torch.full(TENSOR, float(i)) for i in range(count)}, path)
        size = os.path.getsize(path)
        print(f"{size / 1e9:.2f} GB in {count} tensors")

        def one(way: str, what: str) -> dict[str, float]:
            command = [sys.executable, __file__, "--way", way, "--path", path, "--what", what]
            return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)

        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(options.repeats):
            for way, seen in seconds.items():
                seen.append(one(way, "time")["seconds"])
        base = statistics.median(seconds["torch and a copy"])
        for way, seen in seconds.items():
            middle, least = statistics.median(seen), min(seen)
            used = ", ".join(f"{name} {value / size:.2f}" for name, value in one(way, "memory").items())
            print(f"{way:>18}: {middle:.3f} s ({least:.3f} at least), {middle / base:.2f} of torch's; of the file, {used}", flush=True)


if __name__ == "__main__":
    main()
