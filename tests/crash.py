"""Training runs and savers killed at random moments: what is on the disk always loads, and a resumed run ends as one left alone.

    python -m tests.crash [--kills 50] [--seed 0]

Each kill is SIGKILL to a process that saves over and over; the next process finds what it left.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

# A process that says when it has begun and how far it is: "step 7", "restored 5", "saving 8".
TRAINING = """
import sys, jax, numpy as np, optax
import jnn as nn, jnn.functional as F, jnn.io

directory, last, weights = sys.argv[1], int(sys.argv[2]), sys.argv[3]
nn.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Dropout(0.5), nn.Linear(32, 4))
optimizer = nn.optim.Optimizer(model, optax.adamw(optax.cosine_decay_schedule(1e-2, 1000)))
step = nn.train_step(lambda model, x, y: F.cross_entropy(model(x), y), optimizer)
state = {"model": model, "optimizer": optimizer, "key": jax.random.key(0), "step": 0, "note": "run"}
with jnn.io.Checkpointer(directory, keep=3) as checkpointer:
    done = 0
    if checkpointer.latest is not None:
        done, state = checkpointer.restore(state)
        assert state["step"] == done and state["note"] == "run", state
    print("restored", done, flush=True)
    while done < last:
        state["key"], key = jax.random.split(state["key"])
        x = np.asarray(jax.random.normal(key, (16, 8)), np.float32)
        step(x, np.arange(16) % 4)
        done += 1
        state["step"] = done
        print("saving", done, flush=True)
        checkpointer.save(done, state)
jnn.io.save(model.state_dict(), weights)
print("finished", done, flush=True)
"""
SAVING = """
import sys, numpy as np
import jnn.io

path, number = sys.argv[1], int(sys.argv[2])
print("restored", number, flush=True)
while True:
    number += 1
    print("saving", number, flush=True)
    jnn.io.save({"number": number, "a": np.full(300_000, number), "b": [np.full(10, number)] * 2}, path)
"""


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def lines(process: subprocess.Popen[str]):
    """``(word, number)`` for each line the process writes.

    Raises:
        AssertionError: it ended in an error.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    for line in process.stdout:
        word, number = line.split()
        yield word, int(number)
    if process.wait() not in (0, -signal.SIGKILL):
        raise AssertionError(process.stderr.read())


def kill_at_random(process: subprocess.Popen[str], random: random.Random, most: int) -> tuple[int, int]:
    """Kill a process at a random moment around one of its next saves; ``(restored, saving)`` are the last numbers it gave."""
    restored, saving, left = -1, -1, random.randrange(1, most + 1)
    for word, number in lines(process):
        if word == "restored":
            restored = number
        elif word == "saving":
            saving, left = number, left - 1
            if left == 0:
                time.sleep(random.choice((0, random.random() * 0.02, random.random() * 0.2)))
                process.kill()
        elif word == "finished":
            break
    process.wait()
    process.stdout.close(), process.stderr.close()
    return restored, saving


def training(kills: int, seed: int, folder: pathlib.Path) -> None:
    """Kill and resume a run; its end must be that of a run left alone, bit by bit.

    Raises:
        AssertionError: a directory did not load, lost more than the saves in progress, or the weights differ.
    """
    rng, saved = random.Random(seed), 0
    for number in range(kills):
        process = start(TRAINING, folder / "killed", 10_000, folder / "none")
        restored, saving = kill_at_random(process, rng, 4)
        # What was saved before the save before the last is whole: the one after it has waited for it.
        assert restored >= saved, f"kill {number}: step {restored} was restored, step {saved} was on the disk"
        saved = max(restored, saving - 2)
        print(f"kill {number + 1}: restored step {restored}, killed while saving step {saving}", flush=True)
    last = saved + 5
    for name in ("killed", "alone"):
        process = start(TRAINING, folder / name, last, folder / f"{name}.pt")
        assert [word for word, _ in lines(process)][-1] == "finished"
        process.stdout.close(), process.stderr.close()
    import numpy as np

    import jnn.io

    killed, alone = (jnn.io.load(folder / f"{name}.pt") for name in ("killed", "alone"))
    assert killed.keys() == alone.keys()
    assert all(killed[name].tobytes() == alone[name].tobytes() for name in alone), "the weights differ"
    assert all(np.isfinite(value).all() for value in killed.values())
    print(f"{kills} kills, {last} steps: weights equal bit for bit", flush=True)


def saving(kills: int, seed: int, folder: pathlib.Path) -> None:
    """Kill processes that save to one file; it must be whole, and the last or the one before.

    Raises:
        AssertionError: it was neither.
    """
    import jnn.io

    rng, path, number = random.Random(seed), folder / "file.pt", 0
    for kill in range(kills):
        _, last = kill_at_random(start(SAVING, path, number), rng, 20)
        if path.exists():
            value = jnn.io.load(path, verify=True)
            number = value["number"]
            assert (value["a"] == number).all()
            assert value["b"][0] is value["b"][1]
        assert last - 1 <= number <= last or (last == 1 and number == 0), f"kill {kill}: {number} is there, {last} was being saved"
        print(f"kill {kill + 1}: killed while saving {last}, found {number}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for run in (saving, training):
        with tempfile.TemporaryDirectory() as folder:
            run(options.kills, options.seed, pathlib.Path(folder))


if __name__ == "__main__":
    main()
