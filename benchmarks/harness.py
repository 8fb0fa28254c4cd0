"""Timing several forms of one computation in turns, so that what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from typing import Any, NamedTuple

# isort: split
# First of what computes: jnn's setting of the allocator is for threads that start later.
import jnn  # noqa: F401

# isort: split
import jax
import numpy as np
import torch

RESULTS = pathlib.Path(__file__).with_name("results")
# A sample is what calls for this long take on average, after others for so long untimed: torch's threads go on spinning for
# milliseconds after a call and would take a core from whoever comes next, half of its time again.
_SAMPLE_S = 0.012
_UNTIMED_S = 0.025
# One call that takes so long says enough: some gradients by hand take a thousand times the others' time.
_LONG_S = 5.0


class Spread(NamedTuple):
    """The quartiles of a ratio over rounds."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


class Row(NamedTuple):
    """One computation: the median seconds of each form, and the ratio of the first form's time to each other's."""

    name: str
    kind: str
    seconds: Mapping[str, float]
    ratios: Mapping[str, Spread]


def in_turns(
    forms: Mapping[str, Callable[[], Any]],
    budget_s: float = 1.5,
    rounds: int = 7,
    sample_s: float = _SAMPLE_S,
    untimed_s: float = _UNTIMED_S,
) -> dict[str, list[float]]:
    """Seconds of a call of each form, one sample a round: ``rounds`` of them at least, more within the budget. Forms must block."""
    for run in forms.values():
        run()
    once = {name: _mean_seconds(run, 0) for name, run in forms.items()}
    samples: dict[str, list[float]] = {name: [] for name in forms}
    order, start = [name for name, seconds in once.items() if seconds < _LONG_S], time.perf_counter()
    gc.disable()
    try:
        while order and (len(samples[order[0]]) < rounds or time.perf_counter() - start < budget_s):
            for name in order:
                _mean_seconds(forms[name], untimed_s)
                samples[name].append(_mean_seconds(forms[name], sample_s))
            order.reverse()
    finally:
        gc.enable()
    taken = len(samples[order[0]]) if order else rounds
    return {name: seen or [once[name]] * taken for name, seen in samples.items()}


def _mean_seconds(run: Callable[[], Any], least: float) -> float:
    """Of a call, over as many as take ``least`` seconds."""
    begun = time.perf_counter()
    for calls in itertools.count(1):
        run()
        spent = time.perf_counter() - begun
        if spent >= least:
            return spent / calls
    raise AssertionError


def compare(name: str, kind: str, forms: Mapping[str, Callable[[], Any]], **options: Any) -> Row:
    """A row of the first form against the others. Each ratio is of one round's two samples."""
    samples = in_turns(forms, **options)
    first, *others = samples
    ratios = {other: Spread(*statistics.quantiles(np.divide(samples[first], samples[other]), n=4)) for other in others}
    return Row(name, kind, {form: statistics.median(seen) for form, seen in samples.items()}, ratios)


def geometric_mean(values: Iterable[float]) -> float:
    return float(np.exp(np.mean(np.log(list(values)))))


def machine() -> dict[str, str]:
    """What the figures were taken on."""
    with open("/proc/cpuinfo") as file:
        cpu = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), platform.processor())
    devices = ", ".join(sorted({d.device_kind for d in jax.devices()}))
    versions = {name: metadata.version(name) for name in ("jax", "torch", "numpy", "equinox", "flax")}
    return {"cpu": cpu, "cores": str(len(os.sched_getaffinity(0))), "devices": devices, **versions}


def arguments(doc: str, budget: float, **numbers: int) -> argparse.Namespace:
    """The options that the benchmarks share, and ``numbers`` of one's own. The device is chosen before jax makes its first array."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--only", default="", help="a regular expression that names match")
    parser.add_argument("--budget", type=float, default=budget, help="seconds for each row")
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of parameters and inputs")
    parser.add_argument("--no-save", action="store_true", help="print only")
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    jax.config.update("jax_platforms", {"cpu": "cpu", "gpu": "cuda"}[options.device])
    torch.set_default_device({"cpu": "cpu", "gpu": "cuda"}[options.device])
    return options


def to_torch(a: np.ndarray, dtype: str) -> torch.Tensor:
    """``a`` on torch's device, floats as ``dtype``."""
    tensor = torch.from_numpy(a).to(torch.get_default_device(), copy=True)
    return tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor


def synchronized(result: Any) -> Any:
    """``result``, once torch's device has computed it."""
    if torch.get_default_device().type == "cuda":
        torch.cuda.synchronize()
    return result


def shown(rows: list[Row]) -> list[Row]:
    """``rows``, printed."""
    for row in rows:
        print(f"{row.name:32} {row.kind:17}", *(f"{k} {v}" for k, v in row.ratios.items()), sep="  ", flush=True)
    return rows


def report(title: str, rows: list[Row]) -> str:
    """The table of ``rows`` in Markdown, with what they come to by kind."""
    others = list(dict.fromkeys(other for row in rows for other in row.ratios))
    lines = [
        f"# {title}",
        "",
        "Times of jnn over those of the others, medians over rounds in turns (quartiles); below 1 jnn is faster.",
        "",
    ]
    lines += [f"{key}: {value}  " for key, value in machine().items()]
    lines += ["", f"| what | kind | jnn, ms | {' | '.join(others)} |", "|---|---|---|" + "---|" * len(others)]
    for row in rows:
        cells = [str(row.ratios[other]) if other in row.ratios else "" for other in others]
        lines.append(f"| {row.name} | {row.kind} | {1e3 * row.seconds['jnn']:.2f} | {' | '.join(cells)} |")
    lines += ["", "| kind | against | rows | geometric mean | worst |", "|---|---|---|---|---|"]
    for kind in dict.fromkeys(row.kind for row in rows):
        for other in others:
            found = {row.name: row.ratios[other].median for row in rows if row.kind == kind and other in row.ratios}
            if found:
                worst = max(found, key=found.__getitem__)
                mean = geometric_mean(found.values())
                lines.append(f"| {kind} | {other} | {len(found)} | {mean:.2f} | {found[worst]:.2f} ({worst}) |")
    return "\n".join(lines) + "\n"


def save(name: str, title: str, rows: list[Row], options: argparse.Namespace) -> None:
    """Print the table; write it, the figures as JSON and a bar chart of the ratios under ``benchmarks/results/``."""
    text = report(title, rows)
    print(text)
    if options.no_save:
        return
    RESULTS.mkdir(exist_ok=True)
    stem = "-".join([name, *(part for part in (options.device, options.dtype) if part not in ("cpu", "float32"))])
    (RESULTS / f"{stem}.md").write_text(text)
    figures = [{**row._asdict(), "ratios": {k: v._asdict() for k, v in row.ratios.items()}} for row in rows]
    (RESULTS / f"{stem}.json").write_text(json.dumps({"machine": machine(), "rows": figures}, indent=1))
    _chart(RESULTS / f"{stem}.png", title, rows)


def _chart(path: pathlib.Path, title: str, rows: list[Row]) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    kinds = list(dict.fromkeys(row.kind for row in rows))
    labels = [f"{row.name} / {next(iter(row.ratios))}" for row in rows]
    places = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.22 * len(kinds) * len(places)))
    for i, kind in enumerate(kinds):
        of_kind = [(label, next(iter(row.ratios.values()))) for label, row in zip(labels, rows, strict=True) if row.kind == kind]
        bars = [(places[label] + i / (len(kinds) + 1), ratio.median) for label, ratio in of_kind]
        axes.barh(*zip(*bars, strict=True), height=1 / (len(kinds) + 1), label=kind)
    axes.set(yticks=range(len(places)), yticklabels=places, xscale="log", xlabel="ratio of times, below 1 jnn is faster", title=title)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
