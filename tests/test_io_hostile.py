"""Hostile and damaged files: a clear error, soon, in little memory; nothing executed, nothing written. See also fuzz.py."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

import jnn.io
from jnn.io import CheckpointError, load

from . import fuzz

WATCH = fuzz.Watch()
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."


class Runs:
    """Pickled as a call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def archive(pickled, root="archive", **entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        out.writestr(f"{root}/data.pkl", pickled)
        for name, data in entries.items():
            out.writestr(f"{root}/{name.replace('__', '/')}", data)
    return buffer.getvalue()


def tensor(offset=0, size=(2,), stride=(1,), count=4, storage="FloatStorage", key="0"):
    """A pickle of one tensor, whatever its numbers."""

    class Pickler(pickle._Pickler):
        def persistent_id(self, obj):
            return obj.id if isinstance(obj, Id) else None

        def save_global(self, obj, name=None):
            self.write(f"ctorch\n{obj.__name__}\n".encode() if obj.__name__.endswith("Storage") else b"ctorch._utils\n_rebuild_tensor_v2\n")

    def rebuild():
        pass

    class Id:
        pass

    it = Id()
    it.id = ("storage", type(storage, (), {}), key, "cpu", count)

    class Tensor:
        def __reduce__(self):
            return rebuild, (it, offset, size, stride, False, None)

    Pickler.dispatch = dict(pickle._Pickler.dispatch)
    Pickler.dispatch[type] = Pickler.save_global
    Pickler.dispatch[type(rebuild)] = Pickler.save_global
    out = io.BytesIO()
    Pickler(out, 2).dump(Tensor())
    return out.getvalue()


def refused(path, data, match, seconds=2.0, memory=None):
    """That a file is refused with these words, and that nothing else happens."""
    path.write_bytes(data)
    before = sorted(p.name for p in path.parent.iterdir())
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with pytest.raises(CheckpointError, match=match) as caught, WATCH:
            load(path, verify=True)
        spent, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert not WATCH.seen
    assert spent < seconds
    assert peak < (memory or fuzz.MULTIPLE * len(data) + fuzz.CONSTANT)
    assert len(str(caught.value)) < 2000
    assert sorted(p.name for p in path.parent.iterdir()) == before


CALLS = {
    "os.system": Runs(os.system, "touch hostile"),
    "builtins.eval": Runs(eval, "__import__('os').system('touch hostile')"),
    "builtins.exec": Runs(exec, "raise SystemExit"),
    "builtins.getattr": Runs(getattr, "", "join"),
    "builtins.open": Runs(open, "hostile", "w"),
    "subprocess.Popen": Runs(__import__("subprocess").Popen, ["true"]),
    "importlib.import_module": Runs(__import__("importlib").import_module, "os"),
    "torch.nn.modules.linear.Linear": torch.nn.Linear(1, 1),
    "numpy.load": Runs(np.load, "x"),
    "pickle.loads": Runs(pickle.loads, b"."),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_calls_are_refused_by_name(tmp_path, monkeypatch, name, protocol):
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps({"a": [CALLS[name]]}, protocol)
    function = name.rpartition(".")[2]  # modules have other names in older pickles
    match = (
        rf"load: the file refers to [\w.]+\.{function}, which is refused: only tensors and plain containers are read; save its state_dict"
    )
    refused(tmp_path / "x.pt", archive(data), match)
    refused(tmp_path / "x.pt", LEGACY + data, match)


@pytest.mark.parametrize(
    ("code", "match"),
    [
        (b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.", "refers to builtins.eval"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.", "refers to builtins.eval"),
        (b"\x80\x02(X\x01\x00\x00\x00xios\nsystem\n.", "an operation that is not read, got operation=105"),
        (b"\x80\x02(S'touch hostile'\nios\nsystem\n.", "an operation that is not read"),
        (b"\x80\x02ctorch\nfloat32\n)R.", "calls what may not be called"),
        (b"\x80\x02cnumpy\nndarray\n)R.", r"calls what may not be called, got called=ndarray"),
        (b"\x80\x02X\x01\x00\x00\x00x)R.", r"calls what may not be called, got called=str"),
        (b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb0N.", None),
        (b"\x80\x02]}X\x09\x00\x00\x00__class__K\x01sb.", "sets attributes of an object that may have none, got object=list"),
        (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R.", r"the pickle is damaged \(TypeError"),
        (b"\x80\x02j\xff\xff\xff\xff.", r"the pickle is damaged \(KeyError"),
        (b"\x80\x02Nr\xff\xff\xff\x7f.", None),
        (b"\x80\x02h\x00.", "the pickle is damaged"),
        (b"\x80\x02.", "the pickle is damaged"),
        (b"\x80\x02", "the pickle is damaged"),
        (b"\x80\x09N.", "the pickle must be of a protocol up to 5, got protocol=9"),
        (b"\x80\x02X\xff\xff\xff\xffab.", "the pickle ends early"),
        (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fab.", "the pickle ends early"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f.", "an integer must have at most 1024 bytes"),
        (b"\x80\x02I" + b"9" * 5000 + b"\n.", "a line of the pickle is too long"),
        (b"\x80\x02cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R.", "numpy arrays must hold numbers"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00xX\x03\x00\x00\x00hex\x86R.", "bytes must be encoded plainly, got encoding='hex'"),
        (b"\x80\x02X\x01\x00\x00\x00xQ.", "a persistent id must be a tuple"),
        (b"\x80\x02X\x06\x00\x00\x00moduleN\x86Q.", "only storages have persistent ids, got id='module'"),
        (b"\x80\x02}]Ns.", "keys must be strings, numbers or short tuples of them, got key=list"),
        (b"\x80\x02ctorch._utils\n_rebuild_sparse_tensor\nN\x85R.", r"sparse tensors are not read; save tensor.to_dense\(\)"),
        (b"\x80\x02ctorch\nQInt8Storage\n.", "numpy has no dtype for the tensors of torch.QInt8Storage"),
        (b"\x80\x02c" + b"a" * 900 + b"\nb\n.", r"the file refers to a{200}, which is refused"),
    ],
    ids=lambda v: repr(v)[:40],
)
def test_pickles_by_hand(tmp_path, code, match):
    if match is None:
        (tmp_path / "x.pt").write_bytes(archive(code))
        load(tmp_path / "x.pt")
    else:
        refused(tmp_path / "x.pt", archive(code), match)


def put(number):
    return b"r" + struct.pack("<I", number)


def get(number):
    return b"j" + struct.pack("<I", number)


def test_memo_tricks_take_neither_time_nor_memory(tmp_path):
    # Tuples that share their parts, as keys: hashing the last would take 2 ** 200 steps.
    nested = b"".join(get(i) + get(i) + b"\x86" + put(i + 1) + b"0" for i in range(200))
    refused(tmp_path / "x.pt", archive(b"\x80\x02K\x01" + put(0) + b"0" + nested + b"}" + get(200) + b"Ns."), "keys must be strings")
    refused(
        tmp_path / "x.pt",
        archive(b"\x80\x02K\x01" + put(0) + b"0" + nested + b"c__builtin__\nset\n" + get(200) + b"\x85R."),
        "keys must be",
    )
    refused(
        tmp_path / "x.pt",
        archive(b"\x80\x02K\x01" + put(0) + b"0" + nested + b"ctorch\nSize\n" + get(200) + b"\x85R."),
        "sizes must be integers",
    )
    # The same values in a list are nothing but references.
    (tmp_path / "x.pt").write_bytes(archive(b"\x80\x02K\x01" + put(0) + b"0" + nested + b"]" + get(200) + b"a."))
    load(tmp_path / "x.pt")
    # One long string, copied by many calls.
    text = b"X" + struct.pack("<I", 50_000) + b"a" * 50_000
    copies = (
        (b"c_codecs\nencode\n" + put(1) + b"0" + text + put(0) + b"0")
        + b"]("
        + (get(1) + get(0) + b"X\x06\x00\x00\x00latin1\x86R") * 5000
        + b"e."
    )
    refused(tmp_path / "x.pt", archive(b"\x80\x02" + copies), "copies the same things many times")
    # One long tuple of arguments, and one long list within a tuple, for many calls.
    extra = b"(" + b"N" * 50_000 + b"t" + put(0) + b"0](" + (b"ctorch._utils\n_rebuild_parameter\n" + get(0) + b"R") * 5000 + b"e."
    refused(tmp_path / "x.pt", archive(b"\x80\x02" + extra), "copies the same things many times|must be made of an array")
    inner = b"((" + b"K\x01K\x01\x86" * 20_000 + b"lt" + put(0) + b"0"
    calls = (b"ctorch._tensor\n_rebuild_from_type_v2\n(ccollections\nOrderedDict\nctorch\nTensor\n" + get(0) + b"NtR") * 5000
    refused(tmp_path / "x.pt", archive(b"\x80\x02" + inner + b"](" + calls + b"e."), "a tensor is damaged")
    metadata = b"}(" + b"".join(b"X\x05\x00\x00\x00%05d}" % i for i in range(10_000)) + b"u" + put(0) + b"0"
    builds = (b"ccollections\nOrderedDict\n)R}X\x09\x00\x00\x00_metadata" + get(0) + b"sb") * 5000
    refused(tmp_path / "x.pt", archive(b"\x80\x02" + metadata + b"](" + builds + b"e."), "copies the same things many times")
    # A long tuple, hashed by many keys.
    wide = b"(" + b"K\x01" * 50_000 + b"t" + put(0) + b"0}" + (get(0) + b"Ns") * 5000 + b"."
    refused(tmp_path / "x.pt", archive(b"\x80\x02" + wide), "short tuples")


def test_a_pickle_of_too_many_objects_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("jnn.io.unpickle._MOST_OPERATIONS", 100_000)
    refused(
        tmp_path / "x.pt", archive(b"\x80\x02(" + b"]" * 200_000 + b"l."), "the pickle holds more than 100000 operations", memory=1 << 24
    )


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"offset": 3}, "a tensor must lie within its storage"),
        ({"offset": -1}, "a tensor must have an offset"),
        ({"offset": 1 << 62}, "a tensor must have an offset"),
        ({"size": (5,)}, "a tensor must lie within its storage"),
        ({"size": (-1,)}, "sizes must be integers"),
        ({"size": (1 << 61, 1 << 61), "stride": (0, 0)}, "the elements of tensors overlap, and there are too many"),
        ({"size": (1 << 40,), "stride": (0,)}, r"the elements of tensors overlap, and there are too many; save tensor.clone\(\)"),
        ({"size": (2,), "stride": (-1,)}, "sizes must be integers"),
        ({"size": (2,), "stride": (1, 1)}, "sizes and strides of one length"),
        ({"size": (1,) * 65, "stride": (1,) * 65}, "sizes and strides of one length"),
        ({"size": (0, 1 << 61, 1 << 61), "stride": (1, 1, 1)}, "a tensor is too large"),
        ({"size": (2.0,)}, "sizes must be integers"),
        ({"size": (True,)}, "sizes must be integers"),
        ({"count": 5}, "a storage must have the size the pickle says"),
        ({"count": 1 << 61}, "a storage must have the size the pickle says"),
        ({"count": -1}, "the persistent id of a storage is damaged"),
        ({"key": "1"}, "the archive lacks an entry"),
        ({"key": "../data.pkl"}, "the archive lacks an entry"),
        ({"storage": "BoolStorage"}, "must hold only 0 and 1, for its dtype is bool"),
    ],
    ids=str,
)
def test_tensors_outside_their_storage(tmp_path, wrong, match):
    data = np.arange(4, dtype=np.float32) + 2
    refused(tmp_path / "x.pt", archive(tensor(**wrong), data__0=data.tobytes()), match)


def test_an_overlapping_tensor_as_large_as_is_sensible_is_read(tmp_path):
    (tmp_path / "x.pt").write_bytes(archive(tensor(size=(1000, 1000), stride=(0, 0)), data__0=bytes(16)))
    assert load(tmp_path / "x.pt").shape == (1000, 1000)


def test_many_large_views_of_a_small_file(tmp_path):
    """Each is small enough; together they would fill the memory of whoever uses them."""
    one = tensor(size=(1000, 8000), stride=(0, 0))[2:-1]
    many = b"".join(one.replace(b"M@\x1f", struct.pack("<cH", b"M", 7000 + i)) for i in range(100))
    refused(
        tmp_path / "x.pt",
        archive(b"\x80\x02(" + many + b"l.", data__0=bytes(16)),
        "the elements of tensors overlap, and there are too many",
    )


def test_deep_nesting(tmp_path):
    (tmp_path / "x.pt").write_bytes(archive(b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b"."))
    load(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="load: the object is nested too deeply"):
        load(tmp_path / "x.pt", device="cpu")
    deep = []
    for _ in range(50_000):
        deep = [deep]
    with pytest.raises(CheckpointError, match="save: the object is nested too deeply"):
        jnn.io.save(deep, tmp_path / "y.pt")


def sound():
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(10.0), "b": torch.ones(3)}, buffer)
    return buffer.getvalue()


def rezipped(change, mode=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(sound())) as old, zipfile.ZipFile(buffer, "w", mode) as new:
        for name in old.namelist():
            for renamed in change(name):
                new.writestr(renamed, old.read(name))
    return buffer.getvalue()


@pytest.mark.parametrize("evil", ["../evil", "/etc/evil", "archive/../../evil", "..\\evil", "c:/evil"])
def test_names_that_lead_elsewhere(tmp_path, evil):
    refused(
        tmp_path / "x.pt",
        rezipped(lambda name: [name, evil] if name.endswith("/1") else [name]),
        "a name in a zip archive must lie within it",
    )


@pytest.mark.filterwarnings("ignore:Duplicate name")  # by zipfile, which writes the file
def test_archives_by_hand(tmp_path):
    path = tmp_path / "x.pt"
    refused(path, rezipped(lambda n: [n], zipfile.ZIP_DEFLATED), "neither compressed nor encrypted")
    refused(path, rezipped(lambda n: [n, n] if n.endswith("/1") else [n]), "the names in a zip archive must differ")
    refused(path, rezipped(lambda n: [n] if "/data/" in n else []), "this zip archive is not one of torch's: it must have one data.pkl")
    refused(path, rezipped(lambda n: [n, "other/data.pkl"] if n.endswith("data.pkl") else [n]), "it must have one data.pkl")
    refused(
        path,
        rezipped(lambda n: [n, "archive/code/x.py"] if n.endswith("data.pkl") else [n]),
        "this is a TorchScript program; save its state_dict",
    )
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("archive/data.pkl", bytes(100_000_000))
    refused(path, bomb.getvalue(), "neither compressed nor encrypted")
    refused(path, sound()[:-30], "the zip archive is damaged")
    refused(path, sound()[:200], "the zip archive is damaged")
    # Two entries of one stretch of the file.
    data = bytearray(sound())
    directory = data.rindex(b"archive/data/1") - 46
    offsets = [data.rindex(f"archive/data/{i}".encode()) - 46 + 42 for i in (0, 1)]
    data[offsets[1] : offsets[1] + 4] = data[offsets[0] : offsets[0] + 4]
    refused(path, bytes(data), "an entry must have the name that the archive's directory gives it")
    data[directory + 46 : directory + 46 + 14] = b"archive/data/0"
    refused(path, bytes(data), "the names in a zip archive must differ")
    data = bytearray(rezipped(lambda n: [n]))
    at = data.rindex(b"archive/data/0") - 46
    data[at + 20 : at + 28] = struct.pack("<II", 1 << 20, 1 << 20)
    refused(path, bytes(data), "an entry must lie within the file")
    data[at + 20 : at + 28] = struct.pack("<II", 200, 200)
    refused(path, bytes(data), "the entries of a zip archive must not overlap")


def test_flipped_bits(tmp_path):
    data = bytearray(sound())
    at = data.index(np.arange(10, dtype=np.float32).tobytes())
    data[at + 5] ^= 1
    refused(tmp_path / "x.pt", bytes(data), "an entry must have the checksum that the archive gives it, got name='archive/data/0'")
    load(tmp_path / "x.pt")  # numbers are looked at when they are used, unless verify is asked for
    data = bytearray(sound())
    data[data.index(b"_rebuild_tensor_v2")] ^= 1
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match="an entry must have the checksum"):
        load(tmp_path / "x.pt")  # the pickle always is


def test_no_file_of_ours(tmp_path):
    path = tmp_path / "x.pt"
    refused(path, b"", "the file is empty")
    for data in (b"\x00", b"\x89PNG\r\n", b"\x93NUMPY", bytes(4000), b"\x80\x02N.", pickle.dumps([1])):
        refused(path, data, "the file is neither torch's")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing.pt")
    with pytest.raises(CheckpointError, match="load: the path must be that of a file"):
        load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="load: the path must be that of a file"):
        load(tmp_path / "pipe")


def legacy():
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(10.0), "b": torch.ones(3)}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def test_the_older_format(tmp_path):
    path = tmp_path / "x.pt"
    refused(path, legacy()[:-1], "the file ends early|must lie within the file")
    data = bytearray(legacy())
    at = data.index(np.arange(10, dtype=np.float32).tobytes()) - 8
    for count, match in ((-1, "a storage must have a size"), (1 << 62, "the file ends early|must lie within the file"), (5, ".")):
        data[at : at + 8] = struct.pack("<q", count)
        refused(path, bytes(data), match)
    refused(path, LEGACY + b"\x80\x02N.\x80\x02K\x01.", "the names of the storages must be a list of strings")
    refused(path, LEGACY + b"\x80\x02N.\x80\x02](X\x01\x00\x00\x00ae.", "a storage must be there once, and be used")
    refused(path, LEGACY.replace(b"M\xe9\x03", b"M\xea\x03") + b"\x80\x02N.\x80\x02].", "the file is none of torch's")


def header(entries, data=bytes(8), length=None):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (header({"a": entry()}, length=1 << 62), "the header must lie within the file"),
        (header({"a": entry()}, length=1000), "the header must lie within the file"),
        (header({"a": entry()}, length=5), "the header is no JSON"),
        (header({"a": entry()}, bytes(7)), "must lie within the file"),
        (header({"a": entry()}, bytes(9)), "the file must end with its last array"),
        (header({"a": entry(), "b": entry()}), "without gap or overlap"),
        (header({"a": entry(), "b": entry(offsets=(9, 17))}, bytes(17)), "without gap or overlap"),
        (header({"a": entry(shape=(3,))}), "an array must have the size its shape says"),
        (header({"a": entry(shape=(-2,), offsets=(0, -8))}), "shape and offsets must be sizes"),
        (header({"a": entry(shape=(1 << 40, 1 << 40))}), "an array must have the size its shape says"),
        (header({"a": entry(shape=(0, 1 << 60), offsets=(0, 0))}, b""), "an array is too large"),
        (header({"a": entry(shape=(1,) * 65 + (2,))}), "shape and offsets must be sizes"),
        (header({"a": entry(offsets=(0, 8, 9))}), "shape and offsets must be sizes"),
        (header({"a": entry(dtype="F99")}), "numpy has no such dtype, got name='a', dtype='F99'"),
        (header({"a": entry(dtype=["F32"])}), "numpy has no such dtype"),
        (header({"a": {"dtype": "F32"}}), "an entry is damaged"),
        (header({"a": 3}), "an entry is damaged"),
        (header(b'{"a": 1, "a": 2}'), "the names in the header must differ"),
        (header(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "the header is no JSON .RecursionError"),
        (header(b'{"a": ' + b"9" * 10_000 + b"}"), "the header is no JSON .ValueError"),
        (header({"a": entry("BOOL", (8,))}, b"\x01\x00\x02\x00\x00\x00\x00\x00"), "must hold only 0 and 1"),
    ],
    ids=lambda v: v[:40] if isinstance(v, str) else None,
)
def test_safetensors_by_hand(tmp_path, data, match):
    refused(tmp_path / "x.safetensors", data, f"load: .*{match}", memory=1 << 24)


@pytest.mark.parametrize(
    ("index", "match"),
    [
        ({"weight_map": {"a": "../secret"}}, "a shard must lie beside its index, got shard='../secret'"),
        ({"weight_map": {"a": "/etc/passwd"}}, "a shard must lie beside its index"),
        ({"weight_map": {"a": "..\\x"}}, "a shard must lie beside its index"),
        ({"weight_map": {"a": ".."}}, "a shard must lie beside its index"),
        ({"weight_map": {"a": ""}}, "a shard must lie beside its index"),
        ({"weight_map": {"a": "x.json"}}, "an index must not be its own shard"),
        ({"weight_map": {"a": "other.json"}}, "a shard must be no index"),
        ({"weight_map": ["a"]}, "an index must have a weight_map"),
        ({"weight_map": {"a": 1}}, "an index must have a weight_map"),
        ({}, "an index must have a weight_map"),
    ],
    ids=str,
)
def test_indexes_by_hand(tmp_path, index, match):
    (tmp_path / "other.json").write_text(json.dumps({"weight_map": {"a": "x.json"}}))
    refused(tmp_path / "x.json", json.dumps(index).encode(), match)


def test_damaged_files_at_random(tmp_path):
    outcomes = fuzz.run(400, 1, tmp_path)
    assert outcomes["refused"] > 200
    assert outcomes.total() == 400


def test_loading_costs_no_second_copy(tmp_path):
    jnn.io.save({f"layer{i}": np.ones((256, 1024), np.float32) for i in range(16)}, tmp_path / "large.pt")
    tracemalloc.start()
    value = load(tmp_path / "large.pt")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(value) == 16
    assert peak < (tmp_path / "large.pt").stat().st_size / 50
