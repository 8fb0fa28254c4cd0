"""jnn.io.load and save against torch itself: every dtype, layout and container, both ways, bit for bit."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict, defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from jax.sharding import NamedSharding, PartitionSpec

import jnn as nn
from jnn.io import CheckpointError, load, load_into, save
from jnn.io.dtypes import NAMES

FORMATS = [(True, 2), (True, 3), (True, 4), (True, 5), (False, 2), (False, 3), (False, 4), (False, 5)]


def bits(array):
    """dtype, shape and bytes of a tensor or array."""
    if isinstance(array, torch.Tensor):
        plain = array.detach().resolve_conj().resolve_neg().contiguous()
        data = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
        return str(plain.dtype).removeprefix("torch."), tuple(plain.shape), data
    array = np.asarray(array)
    return array.dtype.name, array.shape, array.tobytes()


def equal(mine, theirs):
    """Whether what ``load`` gave is what torch was given."""
    if isinstance(theirs, torch.Tensor):
        return bits(mine) == bits(theirs)
    if isinstance(theirs, dict):
        same = type(mine) is type(theirs) and list(mine) == list(theirs)
        return same and all(equal(mine[k], theirs[k]) for k in theirs)
    if isinstance(theirs, torch.Size):
        return mine == tuple(theirs)
    if isinstance(theirs, torch.dtype):
        return mine.name == str(theirs).removeprefix("torch.")
    if isinstance(theirs, torch.device):
        return mine == str(theirs)
    if isinstance(theirs, (list, tuple)):
        return type(mine) is type(theirs) and len(mine) == len(theirs) and all(map(equal, mine, theirs))
    return type(mine) is type(theirs) and (mine == theirs or theirs != theirs)


def every_dtype():
    raw = np.random.default_rng(0).integers(0, 256, 96, np.uint8)
    for dtype in NAMES:
        values = (raw % 2) if dtype.kind == "b" else raw
        yield torch.tensor(values).view(getattr(torch, dtype.name)).reshape(2, -1)


def layouts(t):
    flat = t.reshape(-1)
    yield from (t, t.t(), t[:, ::2], t[1:, 1:], t[:1].expand(3, -1), flat[2], t[:0], t.reshape(1, *t.shape, 1), flat[3:3])
    if t.numel() > 5:
        yield flat.as_strided((3, 2), (1, 1), 1)  # elements that overlap


@pytest.mark.parametrize(("zipped", "protocol"), FORMATS)
def test_every_dtype_and_layout_of_torch(tmp_path, zipped, protocol):
    tensors = [layout for t in every_dtype() for layout in layouts(t.clone())]
    c = torch.complex(torch.arange(3.0), torch.ones(3))
    tensors += [c.conj(), c.clone().conj().imag, torch.nn.Parameter(torch.ones(2)), torch.nn.Buffer(torch.ones(2))]
    torch.save(tensors, tmp_path / "t.pt", _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    mine = load(tmp_path / "t.pt", verify=True)
    assert all(map(equal, mine, tensors))
    assert not any(a.flags.writeable for a in mine if a.size)


class _Random:
    """Random nested checkpoints."""

    def __init__(self, seed):
        self.random, self.tensors = random.Random(seed), []

    def tensor(self):
        if self.tensors and self.random.random() < 0.3:
            base = self.random.choice(self.tensors)  # shared, as a whole or in part
            return self.random.choice([base, base.reshape(-1)[: base.numel() // 2], base.mT if base.ndim > 1 else base])
        dtype = getattr(torch, self.random.choice([*NAMES]).name)
        shape = [self.random.randrange(4) for _ in range(self.random.randrange(4))]
        raw = torch.tensor([self.random.randrange(2) for _ in range(int(np.prod(shape)) * dtype.itemsize)], dtype=torch.uint8)
        self.tensors.append(raw.view(dtype).reshape(shape))
        return self.tensors[-1]

    def scalar(self):
        r = self.random
        options = [
            None,
            True,
            r.randrange(-(10**6), 10**6),
            r.getrandbits(100),
            r.random(),
            float("inf"),
            "é" * r.randrange(3),
            b"\x00\xff",
            1j,
        ]
        return r.choice([*options, torch.float16, torch.Size([1, 2]), torch.device("cuda:1"), {1, 2}, bytearray(b"ab")])

    def value(self, depth):
        kind = self.random.random()
        if depth == 0 or kind < 0.5:
            return self.tensor() if self.random.random() < 0.6 else self.scalar()
        items = [self.value(depth - 1) for _ in range(self.random.randrange(4))]
        names = [self.random.choice(["weight", "layer.0.bias", i, (i, "x"), 1.5 + i]) for i in range(len(items))]
        pairs = list(zip(names, items, strict=True))
        return self.random.choice([dict, OrderedDict])(pairs) if kind < 0.8 else self.random.choice([list, tuple])(items)


def plain_for_jnn(value):
    """A checkpoint of torch's with arrays in place of tensors, one for each."""
    made = {}

    def convert(item):
        if isinstance(item, torch.Tensor):
            return made.setdefault(id(item), torch_to_array(item))
        if isinstance(item, (dict, list, tuple)) and not isinstance(item, torch.Size):
            return type(item)(((convert(k), convert(v)) for k, v in item.items()) if isinstance(item, dict) else map(convert, item))
        if isinstance(item, torch.dtype):
            return np.dtype(str(item).removeprefix("torch."))
        return str(item) if isinstance(item, torch.device) else tuple(item) if isinstance(item, torch.Size) else item

    return convert(value)


def torch_to_array(tensor):
    name, shape, data = bits(tensor)
    return np.frombuffer(bytearray(data), np.dtype(name)).reshape(shape)


def same_after_torch(theirs, mine):
    """Whether what torch loads of ours is what we saved."""
    if isinstance(mine, (np.ndarray, jax.Array)):
        return isinstance(theirs, torch.Tensor) and bits(theirs) == bits(mine)
    if isinstance(mine, np.dtype):
        return str(theirs) == f"torch.{mine.name}"
    if isinstance(mine, dict):
        return type(theirs) is type(mine) and list(theirs) == list(mine) and all(same_after_torch(theirs[k], mine[k]) for k in mine)
    if isinstance(mine, (list, tuple)):
        return type(theirs) is type(mine) and len(theirs) == len(mine) and all(map(same_after_torch, theirs, mine))
    return type(theirs) is type(mine) and (theirs == mine or mine != mine)


@pytest.mark.parametrize("start", range(0, 300, 50))
def test_300_random_checkpoints_both_ways(tmp_path, start):
    path = tmp_path / "c.pt"
    for seed in range(start, start + 50):
        value = {"top": _Random(seed).value(4), "more": _Random(seed + 1000).value(3)}
        zipped, protocol = FORMATS[seed % len(FORMATS)]
        torch.save(value, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
        assert equal(load(path), value), f"seed {seed}"
        own = plain_for_jnn(value)
        save(own, path)
        assert same_after_torch(torch.load(path, weights_only=True, mmap=seed % 2 == 0), own), f"seed {seed}"
        assert same_after_torch(torch.load(path, weights_only=True), load(path)), f"seed {seed}"


def test_what_shares_in_torch_shares_here(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    shared = [1, 2]
    torch.save({"a": base, "b": base, "t": base.T, "row": base[1], "l": shared, "m": shared}, tmp_path / "t.pt")
    mine = load(tmp_path / "t.pt")
    assert mine["a"] is mine["b"]
    assert mine["l"] is mine["m"]
    assert np.shares_memory(mine["a"], mine["t"])
    assert np.shares_memory(mine["a"], mine["row"])
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    save(net.state_dict(), tmp_path / "own.pt")
    theirs = torch.load(tmp_path / "own.pt", weights_only=True)
    assert theirs["0.weight"].data_ptr() == theirs["1.weight"].data_ptr()
    again = load(tmp_path / "own.pt")
    assert again["0.weight"] is again["1.weight"]
    loop = [1]
    loop.append(loop)
    save(loop, tmp_path / "loop.pt")
    assert torch.load(tmp_path / "loop.pt", weights_only=True)[1][0] == load(tmp_path / "loop.pt")[1][1][0] == 1


def test_numpy_within_checkpoints(tmp_path):
    value = {
        "array": np.arange(6.0).reshape(2, 3).T,
        "scalar": np.float32(2.5),
        "flag": np.bool_(True),
        "empty": np.zeros((0, 3)),
        "state": np.random.RandomState(0).get_state(),
    }
    for zipped, protocol in FORMATS:
        torch.save(value, tmp_path / "n.pt", _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
        mine = load(tmp_path / "n.pt")
        np.testing.assert_array_equal(mine["array"], value["array"])
        assert mine["empty"].shape == (0, 3)
        np.testing.assert_array_equal(mine["state"][1], value["state"][1])
        assert (mine["scalar"], type(mine["scalar"]), bool(mine["flag"])) == (2.5, np.float32, True)


def test_other_containers(tmp_path):
    value = {
        "count": Counter("aab"),
        "meta": torch.empty(2, 3, device="meta", dtype=torch.bfloat16),
        "storage": torch.arange(3).untyped_storage(),
    }
    torch.save(value, tmp_path / "o.pt")
    mine = load(tmp_path / "o.pt")
    assert mine["count"] == Counter("aab")
    assert mine["meta"] == jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)
    assert mine["storage"].tobytes() == torch.arange(3).numpy().tobytes()
    save({"meta": mine["meta"], "self": [mine["meta"]]}, tmp_path / "m.pt")
    assert torch.load(tmp_path / "m.pt", weights_only=True)["meta"].is_meta


def test_python_2_and_the_first_protocols(tmp_path):
    with zipfile.ZipFile(tmp_path / "old.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}(U\x01aU\x02\xff\xfeU\x01bT\x02\x00\x00\x00\xc3\xa9U\x01cL5L\nU\x01dI01\nu.")
    assert load(tmp_path / "old.pt") == {"a": b"\xff\xfe", "b": "é", "c": 5, "d": True}
    value = {"w": torch.arange(4.0).bfloat16(), "n": [1, -(2**40), 2.5, True, None, "é"], "d": defaultdict(list, a=[1])}
    for zipped in (True, False):
        torch.save(value, tmp_path / "t.pt", _use_new_zipfile_serialization=zipped, pickle_protocol=1)
        mine = load(tmp_path / "t.pt")
        assert equal(mine["w"], value["w"])
        assert mine["n"] == value["n"]
        assert mine["d"] == {"a": [1]}
        assert type(mine["d"]) is dict


def test_without_checksums_and_with_the_other_byte_order(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(4.0)}, tmp_path / "plain.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    np.testing.assert_array_equal(load(tmp_path / "plain.pt", verify=True)["a"], np.arange(4.0))
    # The archive as a machine of the other byte order would write it.
    torch.save([torch.arange(4.0), torch.tensor([1 + 2j])], tmp_path / "little.pt")
    with zipfile.ZipFile(tmp_path / "little.pt") as old, zipfile.ZipFile(tmp_path / "big.pt", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            data = b"big" if name.endswith("byteorder") else np.frombuffer(data, "u4").byteswap().tobytes() if "/data/" in name else data
            new.writestr(name, data)
    floats, numbers = load(tmp_path / "big.pt")
    np.testing.assert_array_equal(floats, np.arange(4.0))
    np.testing.assert_array_equal(numbers, [1 + 2j])


def test_safetensors_both_ways(tmp_path):
    tensors = {str(t.dtype): t for t in every_dtype() if t.dtype != torch.complex128} | {
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(2),
    }
    safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "t.safetensors", {"note": "x"})
    mine = load(tmp_path / "t.safetensors")
    assert mine.keys() == tensors.keys()
    assert all(equal(mine[k], tensors[k]) for k in tensors)
    save({"net": {"w": jnp.ones((2, 3)).T, "b": nn.Parameter(jnp.zeros(2))}, "x": mine["torch.bfloat16"]}, tmp_path / "own.safetensors")
    theirs = safetensors.torch.load_file(tmp_path / "own.safetensors")
    assert {k: tuple(v.shape) for k, v in theirs.items()} == {"net.w": (3, 2), "net.b": (2,), "x": mine["torch.bfloat16"].shape}
    assert bits(theirs["x"]) == bits(mine["torch.bfloat16"])
    with pytest.raises(CheckpointError, match=r"save: safetensors has no such dtype; save to a \.pt file, got name='x', dtype=complex128"):
        save({"x": np.zeros(2, complex)}, tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match=r"save: safetensors holds arrays by name.*name='epoch'"):
        save({"epoch": 3}, tmp_path / "bad.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["own.safetensors", "t.safetensors"]


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_sharded_checkpoints(tmp_path, kind):
    state = {f"layer.{i}.weight": torch.randn(2, i) for i in range(4)}
    places = {name: f"model-{i % 2}.{kind}" for i, name in enumerate(state)}
    for shard in set(places.values()):
        part = {name: state[name] for name, place in places.items() if place == shard}
        (safetensors.torch.save_file if kind == "safetensors" else torch.save)(part, tmp_path / shard)
    index = tmp_path / f"model.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}, indent=2))
    assert equal(load(index), state)
    index.write_text(json.dumps({"weight_map": places | {"gone": f"model-0.{kind}"}}))
    with pytest.raises(CheckpointError, match=r"load: the shards must hold what the index says, got missing=\('gone'\)"):
        load(index)
    (tmp_path / f"model-1.{kind}").unlink()
    with pytest.raises(CheckpointError, match="load: a shard must be there, got shard='model-1"):
        load(index)


def test_loading_to_devices(tmp_path):
    save({"a": np.arange(16.0), "tied": [np.ones(2)] * 2, "n": 3}, tmp_path / "a.pt")
    mesh = jax.make_mesh((8,), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    save({"a": jax.device_put(np.arange(16.0), sharding)}, tmp_path / "sharded.pt")
    loaded = load(tmp_path / "sharded.pt", device=sharding)["a"]
    assert loaded.sharding == sharding
    np.testing.assert_array_equal(loaded, np.arange(16.0))
    moved = load(tmp_path / "a.pt", device="cpu")
    assert isinstance(moved["a"], jax.Array)
    assert moved["tied"][0] is moved["tied"][1]
    assert moved["n"] == 3
    os.truncate(tmp_path / "a.pt", 10)  # what was moved does not need the file
    np.testing.assert_array_equal(moved["a"], np.arange(16.0))


def test_64_bits_need_x64(tmp_path):
    save({"n": np.arange(3), "x": np.ones(2)}, tmp_path / "n.pt")
    save({"n": np.array([1 << 40])}, tmp_path / "large.pt")
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(TypeError, match="load: float64 needs JAX's x64 mode"):
            load(tmp_path / "n.pt", device="cpu")
        with pytest.raises(CheckpointError, match="load: integers of more than 32 bits need JAX's x64 mode"):
            load(tmp_path / "large.pt", device="cpu")
        save({"n": np.arange(3)}, tmp_path / "n.pt")
        assert load(tmp_path / "n.pt", device="cpu")["n"].dtype == np.int32
    finally:
        jax.config.update("jax_enable_x64", True)


def pair():
    theirs = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    return theirs, nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def assert_loaded(mine, theirs):
    for name, value in theirs.state_dict().items():
        np.testing.assert_array_equal(mine.state_dict()[name], value.numpy(), err_msg=name)


def test_load_state_dict_takes_what_load_gives(tmp_path):
    theirs, mine = pair()
    for name, write in {"a.pt": torch.save, "a.safetensors": safetensors.torch.save_file}.items():
        with torch.no_grad():
            theirs[0].weight += 1
        write(theirs.state_dict(), tmp_path / name)
        mine.load_state_dict(load(tmp_path / name))
        assert_loaded(mine, theirs)
    save(mine.state_dict(), tmp_path / "back.pt")
    theirs.load_state_dict(torch.load(tmp_path / "back.pt", weights_only=True))
    assert torch.load(tmp_path / "back.pt", weights_only=True)._metadata == theirs.state_dict()._metadata


def test_load_into_reports(tmp_path):
    theirs, mine = pair()
    torch.save({"model": torch.nn.DataParallel(theirs).state_dict(), "epoch": 3}, tmp_path / "run.pt")
    with pytest.raises(
        CheckpointError, match=r"load_into: no name fits Sequential; try prefix='model\.module\.'; the file has model, epoch"
    ):
        load_into(mine, tmp_path / "run.pt")
    report = load_into(mine, tmp_path / "run.pt", prefix="model.module.")
    assert_loaded(mine, theirs)
    assert report == ([*theirs.state_dict()], [], [], ["epoch"])
    assert str(report) == "9 loaded\n0 missing\n0 unexpected\n1 left out: epoch"
    with torch.no_grad():
        theirs[2].bias += 1
    state = OrderedDict((f"backbone.{k}" if k[0] < "2" else f"head.{k[2:]}", v) for k, v in theirs.state_dict().items())
    state["extra"] = torch.ones(1)
    torch.save(state, tmp_path / "renamed.pt")
    rename = {r"^backbone\.": "", r"^head\.": "2."}
    before = mine.state_dict()
    with pytest.raises(RuntimeError, match='Unexpected key.*"extra"'):
        load_into(mine, tmp_path / "renamed.pt", rename=rename)
    assert all(mine.state_dict()[k] is before[k] for k in before)
    assert load_into(mine, tmp_path / "renamed.pt", strict=False, rename=rename).unexpected == ["extra"]
    assert_loaded(mine, theirs)
    report = load_into(
        mine,
        load(tmp_path / "renamed.pt"),
        strict=False,
        rename=lambda name: name[5:] and f"2.{name[5:]}" if name.startswith("head.") else None,
    )
    assert report.loaded == ["2.weight", "2.bias"]
    assert "0.weight" in report.missing
    assert "extra" in report.left_out
    with pytest.raises(CheckpointError, match="load_into: two names must not become one, got name='x'"):
        load_into(mine, tmp_path / "renamed.pt", rename={"^.*$": "x"})
    with pytest.raises(RuntimeError, match="size mismatch for 0.weight"):
        load_into(nn.Sequential(nn.Linear(2, 4)), theirs_only_first(theirs, tmp_path), strict=False)


def theirs_only_first(theirs, folder):
    torch.save({k: v for k, v in theirs.state_dict().items() if k.startswith("0.")}, folder / "first.pt")
    return folder / "first.pt"


def test_versions_of_old_state_dicts_are_kept(tmp_path):
    theirs, mine = pair()
    state = torch.nn.DataParallel(theirs).state_dict()
    del state["module.1.num_batches_tracked"]  # which torch before 0.4.1 did not have
    for how in ({"prefix": "net.module."}, {"prefix": "net.", "rename": {r"^module\.": ""}}):
        state._metadata["module.1"]["version"] = 2
        torch.save({"net": state}, tmp_path / "new.pt")
        with pytest.raises(RuntimeError, match=r'Missing key.*"1\.num_batches_tracked"'):
            load_into(mine, tmp_path / "new.pt", **how)
        state._metadata["module.1"]["version"] = 1
        torch.save({"net": state}, tmp_path / "old.pt")
        assert load_into(mine, tmp_path / "old.pt", **how).missing == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda: nn.Linear(2, 2), "a Module is saved by its state_dict"),
        (lambda: {"f": print}, "only arrays, numbers, strings, dtypes and plain containers are saved"),
        (lambda: jax.random.key(0), r"a random key must be saved as jax\.random\.key_data"),
        (lambda: np.array(["a"]), "torch has no such dtype"),
        (lambda: np.ones(2, jnp.int4), "torch has no such dtype"),
        (lambda: nn.optim.optax.ScaleByScheduleState(1), "a named tuple would come back as a plain one"),
        (lambda: 1 << 3000, "an integer must have at most 255 bytes"),
    ],
)
def test_what_cannot_be_saved_is_refused(tmp_path, value, message):
    (tmp_path / "x.pt").write_bytes(b"old")
    with pytest.raises(CheckpointError, match=f"save: {message}"):
        save(value(), tmp_path / "x.pt")
    assert (tmp_path / "x.pt").read_bytes() == b"old"
    assert len([*tmp_path.iterdir()]) == 1


FULL_DISK = """
import resource, signal, sys, numpy as np
import jnn.io
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = sys.argv[1]
jnn.io.save({"a": np.arange(3000)}, path)
whole = open(path, "rb").read()
for limit in [0, 1, 40, 500, 1000, 20000, len(whole) - 1]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        jnn.io.save({"a": np.ones(3000, np.int64)}, path)
        raise SystemExit(f"nothing was said at {limit}")
    except jnn.io.CheckpointError as error:
        assert "could not be written and is as it was" in str(error), error
    assert open(path, "rb").read() == whole, limit
"""


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_a_full_disk_leaves_the_old_file(tmp_path, name):
    run = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path / name], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr + run.stdout
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_link_stays_and_permissions_too(tmp_path):
    (tmp_path / "real.pt").write_bytes(b"old")
    (tmp_path / "real.pt").chmod(0o640)
    (tmp_path / "link.pt").symlink_to("real.pt")
    save([1], tmp_path / "link.pt")
    assert (tmp_path / "link.pt").is_symlink()
    assert load(tmp_path / "real.pt") == [1]
    assert (tmp_path / "real.pt").stat().st_mode & 0o777 == 0o640
    with pytest.raises(CheckpointError, match="could not be written"):
        save([1], tmp_path / "nowhere" / "x.pt")
