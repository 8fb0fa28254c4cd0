"""Timing several forms of one computation in turns, so that what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import gc
import json
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

RESULTS = pathlib.Path(__file__).with_name("results")
# A sample takes this long at least: a short call is repeated within it.
_SAMPLE_S = 0.004


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


def in_turns(forms: Mapping[str, Callable[[], Any]], budget_s: float = 1.5, rounds: int = 7) -> dict[str, list[float]]:
    """Seconds of a call of each form, one sample a round: ``rounds`` of them at least, more within the budget. Forms must block."""
    repeats = {}
    for name, run in forms.items():
        run()
        start = time.perf_counter()
        run()
        repeats[name] = max(1, round(_SAMPLE_S / max(time.perf_counter() - start, 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in forms}
    order, start = list(forms), time.perf_counter()
    gc.disable()
    try:
        while len(samples[order[0]]) < rounds or time.perf_counter() - start < budget_s:
            for name in order:
                begun = time.perf_counter()
                for _ in range(repeats[name]):
                    forms[name]()
                samples[name].append((time.perf_counter() - begun) / repeats[name])
            order.reverse()
    finally:
        gc.enable()
    return samples


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
    versions = {name: __import__(name).__version__ for name in ("jax", "torch", "numpy")}
    return {"cpu": cpu, "cores": str(len(__import__("os").sched_getaffinity(0))), "devices": devices, **versions}


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
    lines += ["", "| kind | against | geometric mean | worst |", "|---|---|---|---|"]
    for kind in dict.fromkeys(row.kind for row in rows):
        for other in others:
            found = {row.name: row.ratios[other].median for row in rows if row.kind == kind and other in row.ratios}
            if found:
                worst = max(found, key=found.__getitem__)
                lines.append(f"| {kind} | {other} | {geometric_mean(found.values()):.2f} | {found[worst]:.2f} ({worst}) |")
    return "\n".join(lines) + "\n"


def save(name: str, title: str, rows: list[Row]) -> None:
    """Print the table; write it, the figures as JSON and a bar chart of the ratios to torch under ``benchmarks/results/``."""
    RESULTS.mkdir(exist_ok=True)
    text = report(title, rows)
    print(text)
    (RESULTS / f"{name}.md").write_text(text)
    figures = [{**row._asdict(), "ratios": {k: v._asdict() for k, v in row.ratios.items()}} for row in rows]
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": machine(), "rows": figures}, indent=1))
    _chart(RESULTS / f"{name}.png", title, rows)


def _chart(path: pathlib.Path, title: str, rows: list[Row]) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    kinds = list(dict.fromkeys(row.kind for row in rows))
    names = list(dict.fromkeys(row.name for row in rows))
    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.22 * len(kinds) * len(names)))
    for i, kind in enumerate(kinds):
        shown = [(names.index(row.name) + i / (len(kinds) + 1), row.ratios["torch"].median) for row in rows if row.kind == kind]
        axes.barh(*zip(*shown, strict=True), height=1 / (len(kinds) + 1), label=kind)
    axes.set(yticks=range(len(names)), yticklabels=names, xscale="log", xlabel="time of jnn / time of torch eager", title=title)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
