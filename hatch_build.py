"""Builds the library of kernels for CPUs, ``jnn/kernels/csrc``, where a C++ compiler is found; jnn does without it else.

``python hatch_build.py`` builds it in place, for work on it; jaxlib, whose headers it needs, must be installed.
"""

from __future__ import annotations

import os
import pathlib
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = pathlib.Path(__file__).with_name("jnn") / "kernels" / "csrc"
# One library for each of these; jnn loads the first that the processor can run.
LEVELS = ("x86-64-v4", "x86-64-v3") if platform.machine().lower() in ("x86_64", "amd64") else ("generic",)
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math")


def library(level: str) -> pathlib.Path:
    return SOURCES / f"libjnn-{level}.so"


def compiler() -> str | None:
    """``$CXX``, or the first that is found."""
    return shutil.which(os.environ.get("CXX", "")) or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def build(compile_with: str) -> None:
    """Compile each source for each level, as many at a time as there are cores, and link.

    Raises:
        subprocess.CalledProcessError: the compiler refused.
    """
    import jaxlib

    headers = pathlib.Path(jaxlib.__file__).with_name("include")

    def run(*arguments: object) -> None:
        subprocess.run([compile_with, *map(str, arguments)], check=True, capture_output=True, text=True)

    def of_level(level: str) -> tuple[str, ...]:
        return (*FLAGS, *([] if level == "generic" else [f"-march={level}"]))

    def compiled(level: str, source: pathlib.Path) -> pathlib.Path:
        target = source.with_name(f"{source.stem}-{level}.o")
        run(*of_level(level), "-isystem", headers, "-c", source, "-o", target)
        return target

    jobs = [(level, source) for level in LEVELS for source in sorted(SOURCES.glob("*.cc"))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, *zip(*jobs, strict=True)))
    for level in LEVELS:
        own = [target for (of, _), target in zip(jobs, objects, strict=True) if of == level]
        run("-shared", *own, "-o", library(level).with_suffix(".part"))
        library(level).with_suffix(".part").replace(library(level))
    for target in objects:
        target.unlink()


class CustomBuildHook(BuildHookInterface):
    """What hatchling calls before it makes a wheel or an editable installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        found = compiler()
        if self.target_name != "wheel" or found is None:
            self.app.display_warning("jnn: no C++ compiler was found, so CPUs will run XLA's programs alone")
            return
        try:
            build(found)
        except subprocess.CalledProcessError as error:
            self.app.display_warning(f"jnn: {found} refused, so CPUs will run XLA's programs alone\n{error.stderr}")
            return
        build_data |= {"pure_python": False, "infer_tag": True}
        build_data["artifacts"] += [f"jnn/kernels/csrc/{library(level).name}" for level in LEVELS]


if __name__ == "__main__":
    build(compiler() or sys.exit("no C++ compiler was found"))
