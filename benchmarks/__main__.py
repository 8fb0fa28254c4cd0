"""All benchmarks that compare times, one after the other, each in a process of its own.

    python benchmarks [--only REGEX] [--budget SECONDS] [--compile] [--device gpu] [--dtype bfloat16] [--no-save]

Every option goes to every one of them: ops.py, drawn.py, models.py, compile.py and overhead.py. What they need installs with
``pip install -e '.[bench]'``.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys

SCRIPTS = ("ops", "drawn", "models", "compile", "overhead")


def main() -> None:
    if {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    for name in SCRIPTS:
        subprocess.run([sys.executable, str(pathlib.Path(__file__).with_name(f"{name}.py")), *sys.argv[1:]], check=True)


if __name__ == "__main__":
    main()
