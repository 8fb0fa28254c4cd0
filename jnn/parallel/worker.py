"""One process of a run: joins it, then runs a script as ``python`` would. What ``jnn.parallel.launch`` starts."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time
import traceback

# What the launcher holds open as long as it is there, and where a process writes its number and the time when its script fails.
PIPES = "JNN_LAUNCHER_PIPES"


def _follow(pipe: int) -> None:
    """End this process and its children when the launcher is gone."""
    os.read(pipe, 1)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _run(arguments: list[str]) -> None:
    if arguments[0] == "-m":
        sys.argv, module = arguments[1:], arguments[1]
        sys.path[0] = os.getcwd()
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv, script = arguments, arguments[0]
        sys.path[0] = os.path.dirname(os.path.abspath(script))
        runpy.run_path(script, run_name="__main__")


def main() -> None:
    held, failed = map(int, os.environ.pop(PIPES, "-1 -1").split())
    if held >= 0:
        threading.Thread(target=_follow, args=(held,), daemon=True).start()
    from .distributed import INDEX, initialize  # late, for the thread must be there whatever happens

    number = os.environ.get(INDEX)

    try:
        initialize()
        _run(sys.argv[1:])
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else 0 if exit.code is None else 1
        if isinstance(exit.code, str):
            sys.stderr.write(f"{exit.code}\n")
    except BaseException:
        traceback.print_exc()
        status = 1
    else:
        status = 0
    if status:
        if failed >= 0:
            os.write(failed, f"{number} {time.monotonic()}\n".encode())
        # A normal exit would wait for the other processes, which wait for this one.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
