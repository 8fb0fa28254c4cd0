"""Mutated checkpoints through the reader: an answer or a CheckpointError, soon, in little memory, and nothing else happens.

    python -m tests.fuzz [--files 20000] [--seed 0]

Each file is torch's (both formats), safetensors, an index, or jnn's, damaged in one of the ways below; half of the damage is
behind checksums and lengths that are made right again, so that it reaches the pickles and headers.
"""

from __future__ import annotations

import argparse
import codecs
import collections
import io
import json
import os
import pathlib
import random
import sys
import tempfile
import time
import tracemalloc
import zipfile
import zlib

import numpy as np
import safetensors.numpy
import torch

import jnn.io

SECONDS = 2.0
# Of a damaged file's size, and on top of it: what the interpreter allocates for any file.
MULTIPLE, CONSTANT = 8, 1 << 20
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess", "socket", "shutil", "os.remove", "os.rename", "os.mkdir")
FORBIDDEN += ("os.chmod", "os.link", "os.symlink", "os.truncate", "exec", "compile", "pickle.find_class", "ctypes", "webbrowser")
EDGES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


class Watch:
    """Notes, while it is on, what a reader must not do: run programs or code, write, connect."""

    def __init__(self) -> None:
        self.on, self.seen = False, []
        for encoding in ("ascii", "cp437", "latin1", "utf-8"):
            codecs.lookup(encoding)  # which imports it the first time, and that is running code
        sys.addaudithook(self._note)

    def _note(self, event: str, args: tuple) -> None:
        if not self.on:
            return
        writes = event == "open" and (set("wax+") & set(args[1] or "") or (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if writes or event.startswith(FORBIDDEN):
            self.seen.append((event, str(args)[:200]))

    def __enter__(self) -> Watch:
        self.on, self.seen = True, []
        return self

    def __exit__(self, *exc: object) -> None:
        self.on = False


def corpus() -> dict[str, bytes]:
    """Sound files by name."""
    generator = np.random.default_rng(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Linear(4, 4))
    optimizer = torch.optim.AdamW(model.parameters())
    base = torch.arange(24.0).reshape(4, 6)
    layouts = {"t": base.T, "slice": base[1:, ::2], "expanded": base[:1].expand(5, 6), "tied": [base, base], "empty": torch.empty(0, 3)}
    layouts |= {"f8": torch.ones(3).to(torch.float8_e5m2), "bool": torch.tensor([True, False]), "conj": torch.ones(2) + 0j}
    layouts["conj"] = layouts["conj"].conj()
    training = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "best": 0.5, "rng": torch.get_rng_state()}
    plain = {"numpy": np.arange(3.0), "text": "é", "bytes": b"\xff", "set": {1, 2}, "size": torch.Size([1]), "device": torch.device("cpu")}
    files = {}
    for name, value in {"training": training, "layouts": layouts, "plain": plain}.items():
        for zipped in (True, False):
            for protocol in (2, 4):
                buffer = io.BytesIO()
                torch.save(value, buffer, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
                files[f"{name}-{'zip' if zipped else 'legacy'}-{protocol}"] = buffer.getvalue()
    arrays = {f"layer.{i}.weight": generator.standard_normal((i + 1, 3)).astype(np.float32) for i in range(5)}
    files["safetensors"] = safetensors.numpy.save(arrays | {"count": np.array(3)}, {"format": "pt"})
    files["index"] = json.dumps(
        {"metadata": {"total_size": 1}, "weight_map": {"a": "shard.safetensors", "b": "shard.safetensors"}}
    ).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "own.pt")
        jnn.io.save({"model": arrays, "epoch": 3}, path)
        files["own"] = path.read_bytes()
    return files


def damage(data: bytes, others: list[bytes], random: random.Random) -> bytes:
    """``data`` with one to four changes."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        if not out:
            break
        at, size = random.randrange(len(out)), min(1 << random.randrange(8), len(out))
        match random.randrange(9):
            case 0:
                out[at] ^= 1 << random.randrange(8)
            case 1:
                out[at] = random.randrange(256)
            case 2:
                del out[at:]
            case 3:
                del out[at : at + size]
            case 4:
                out[at:at] = bytes(random.randrange(256) for _ in range(size))
            case 5:
                out[at:at] = out[at : at + size] * random.choice((1, 2, 100))
            case 6:
                width = random.choice((1, 2, 4, 8))
                out[at : at + width] = (random.choice(EDGES) & ((1 << 8 * width) - 1)).to_bytes(width, random.choice(("little", "big")))
            case 7:
                other = random.choice(others)
                start = random.randrange(len(other))
                out[at:at] = other[start : start + size]
            case 8:
                # Operations of pickles, with arguments that are whatever follows.
                out[at : at + 1] = random.choice(
                    b"(.0123FIJKLMNPQRSTUVXabcdeghijlopqrstu}]\x80\x81\x85\x86\x87\x8a\x8b\x8c\x93\x94\x95"
                ).to_bytes()
    return bytes(out)


def damage_inside(data: bytes, others: list[bytes], random: random.Random) -> bytes:
    """Damage behind what checks it: an entry or name of a zip archive, the header of safetensors; else anywhere."""
    if data.startswith(b"PK"):
        buffer = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
            chosen = random.choice([name for name in old.namelist() if "/data" in name or random.random() < 0.1])
            for name in old.namelist():
                content = old.read(name)
                if name == chosen and random.random() < 0.95:
                    content = damage(content, others, random)
                elif name == chosen:
                    name = random.choice(["../" * 8 + "tmp/evil", "/tmp/evil", name + "x", "archive/data.pkl2", "c:\\evil", ""])
                new.writestr(name or "x", content, random.choice((0,) * 30 + (zipfile.ZIP_DEFLATED,)))
        return buffer.getvalue()
    if data[8:9] == b"{":
        length = int.from_bytes(data[:8], "little")
        header = damage(data[8 : 8 + length], others, random)
        return len(header).to_bytes(8, "little") + header + data[8 + length :]
    return damage(data, others, random)


def touch(value: object, budget: int) -> None:
    """Read the arrays of a loaded object, a bounded number of them."""
    seen, todo = set(), [value]
    while todo and len(seen) < 10_000:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, dict):
            todo += item.values()
        elif isinstance(item, (list, tuple, set, frozenset)):
            todo += item
        elif isinstance(item, np.ndarray) and item.size:
            zlib.crc32(item.flat[: min(item.size, budget)].tobytes())


def run(count: int, seed: int, folder: pathlib.Path, report: bool = False) -> collections.Counter[str]:
    """Load ``count`` damaged files; the outcomes by kind.

    Raises:
        AssertionError: one of them did what it must not; the file is left in the folder.
    """
    files = corpus()
    names, contents = [*files], [*files.values()]
    (folder / "shard.safetensors").write_bytes(safetensors.numpy.save({"a": np.ones(2), "b": np.zeros(3)}))
    path, watch, outcomes, slowest, largest = folder / "damaged", Watch(), collections.Counter(), 0.0, 0
    tracemalloc.start()
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        name = names[number % len(names)]
        data = rng.choice((damage, damage_inside))(files[name], contents, rng)
        path.write_bytes(data)
        tracemalloc.reset_peak()
        before, start = tracemalloc.get_traced_memory()[0], time.perf_counter()
        try:
            with watch:
                value = jnn.io.load(path, verify=rng.random() < 0.5)
            outcome = "loaded"
        except jnn.io.CheckpointError as error:
            outcome, value = "refused", None
            assert str(error).startswith("load: "), error
            assert len(str(error)) < 2000, error
        seconds, memory = time.perf_counter() - start, tracemalloc.get_traced_memory()[1] - before
        touch(value, 1 << 16)
        del value
        where = f"seed {seed}, file {number} ({name}, {len(data)} bytes)"
        assert not watch.seen, f"{where}: {watch.seen}"
        assert seconds < SECONDS, f"{where}: {seconds:.1f} s"
        assert memory < MULTIPLE * len(data) + CONSTANT, f"{where}: {memory} bytes of memory"
        assert sorted(p.name for p in folder.iterdir()) == ["damaged", "shard.safetensors"], f"{where}: wrote a file"
        outcomes[outcome] += 1
        slowest, largest = max(slowest, seconds), max(largest, memory - len(data))
        if report and (number + 1) % 1000 == 0:
            print(
                f"{number + 1} files: {dict(outcomes)}, slowest {slowest:.3f} s, most memory {largest >> 10} KiB and the file", flush=True
            )
    tracemalloc.stop()
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(options.files, options.seed, pathlib.Path(folder), report=True)


if __name__ == "__main__":
    main()
