"""ParameterList and ParameterDict, side by side with torch, and through the pure face."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jnn as nn


def make(source, *shape, dtype="float32"):
    return torch.ones(shape, dtype=getattr(torch, dtype)) if source is torch.nn else jnp.ones(shape, dtype)


def observe(see):
    """What ``see(source)`` gives on each side: a value, or the type of an error."""

    def attempt(source):
        try:
            return see(source)
        except Exception as error:
            return type(error)

    return attempt(nn), attempt(torch.nn)


def some(source):
    return source.ParameterList([make(source, 2), "text", source.Parameter(make(source, 1, 3)), source.Linear(2, 2)])


def named(source):
    return source.ParameterDict(OrderedDict(b=make(source, 2), a=3, c=source.ParameterDict({"x": make(source, 1)})))


def names(module):
    return [n for n, _ in module.named_parameters()], [n for n, _ in module.named_modules()], [*module.state_dict()]


def after(container, change):
    change(container)
    return repr(container), names(container), len(container)


DTYPES = ["float32", "float64", "float16", "bfloat16", "complex64", "complex128"]
LISTS = {
    "repr": lambda s: repr(some(s)),
    "repr of one": lambda s: repr(s.ParameterList([make(s, 2, 3)])),
    "repr of none": lambda s: repr(s.ParameterList()),
    "repr of a scalar": lambda s: repr(s.ParameterList([make(s)])),
    "repr of dtypes": lambda s: [repr(s.ParameterList([make(s, 2, dtype=d)])) for d in DTYPES],
    "repr of integers": lambda s: repr(s.ParameterList([s.Parameter(make(s, 2, dtype="int32"), requires_grad=False)])),
    "repr nested": lambda s: repr(s.ParameterList([some(s), named(s)])),
    "names": lambda s: names(some(s)),
    "names nested": lambda s: names(s.ParameterList([some(s), named(s)])),
    "kinds": lambda s: [type(v).__name__ for v in some(s)],
    "length": lambda s: len(some(s)),
    "slice": lambda s: repr(some(s)[1:]),
    "slice backwards": lambda s: repr(some(s)[::-2]),
    "last": lambda s: repr(some(s)[-1]),
    "append": lambda s: after(some(s), lambda p: p.append(make(s, 4)).append(5)),
    "extend": lambda s: after(some(s), lambda p: p.extend([make(s, 4), None])),
    "+=": lambda s: after(some(s), lambda p: p.__iadd__(some(s))),
    "extend by itself": lambda s: after(s.ParameterList([make(s, 1)]), lambda p: p.extend([*p])),
    "set": lambda s: after(some(s), lambda p: p.__setitem__(-1, make(s, 7))),
    "set an object": lambda s: after(some(s), lambda p: p.__setitem__(1, make(s, 7))),
    "set None": lambda s: after(some(s), lambda p: p.__setitem__(0, None)),
    "set a wrong type": lambda s: after(some(s), lambda p: p.__setitem__(0, "text")),
    "contains": lambda s: "text" in some(s),
    "dir": lambda s: "0" in dir(some(s)),
    "out of range": lambda s: some(s)[4],
    "out of range below": lambda s: some(s)[-5],
    "a name as index": lambda s: some(s)["0"],
    "of an array": lambda s: s.ParameterList(make(s, 2)),
    "of a number": lambda s: s.ParameterList(2),
    "of integers": lambda s: s.ParameterList([make(s, 2, dtype="int32")]),
    "call": lambda s: some(s)(1),
    "delete": lambda s: some(s).__delitem__(0),
    "add": lambda s: some(s) + [1],  # noqa: RUF005
    "converts": lambda s: [str(p.dtype).split(".")[-1] for p in s.ParameterList([make(s, 2)]).double().parameters()],
    "keeps the Parameter": lambda s: (lambda p: s.ParameterList([p])[0] is p)(s.Parameter(make(s, 1))),
}
DICTS = {
    "repr": lambda s: repr(named(s)),
    "repr of one": lambda s: repr(s.ParameterDict({"a": make(s, 2, 3)})),
    "repr of none": lambda s: repr(s.ParameterDict()),
    "repr of dtypes": lambda s: [repr(s.ParameterDict({"a": make(s, 2, dtype=d)})) for d in DTYPES],
    "names": lambda s: names(named(s)),
    "keys": lambda s: [*named(s).keys()],
    "values": lambda s: [type(v).__name__ for v in named(s).values()],
    "items": lambda s: [(k, type(v).__name__) for k, v in named(s).items()],
    "iterate": lambda s: [*named(s)],
    "reversed": lambda s: [*reversed(named(s))],
    "length": lambda s: len(named(s)),
    "contains": lambda s: ("a" in named(s), "z" in named(s), 3 in named(s)),
    "a dict is sorted": lambda s: [*s.ParameterDict({"b": 1, "a": 2})],
    "pairs keep their order": lambda s: [*s.ParameterDict([("b", 1), ["a", 2]])],
    "of another": lambda s: after(s.ParameterDict(named(s)), lambda p: None),
    "set": lambda s: after(named(s), lambda p: p.__setitem__("b", make(s, 5))),
    "set another kind": lambda s: after(named(s), lambda p: p.__setitem__("b", "text")),
    "delete": lambda s: after(named(s), lambda p: p.__delitem__("b")),
    "delete an object": lambda s: after(named(s), lambda p: p.__delitem__("a")),
    "pop": lambda s: (lambda p: (tuple(p.pop("b").shape), repr(p)))(named(s)),
    "popitem": lambda s: (lambda p: (p.popitem()[0], repr(p)))(named(s)),
    "popitem of none": lambda s: s.ParameterDict().popitem(),
    "clear": lambda s: after(named(s), lambda p: p.clear()),
    "get": lambda s: (named(s).get("a"), named(s).get("z"), named(s).get("z", 7)),
    "setdefault": lambda s: (lambda p: (p.setdefault("a", 5), p.setdefault("z", 5), p.setdefault("y"), [*p]))(named(s)),
    "fromkeys": lambda s: repr(named(s).fromkeys(["q", "p"], 4)),
    "copy": lambda s: (lambda p: (p.copy()["b"] is p["b"], p.copy() is p, repr(p.copy())))(named(s)),
    "update": lambda s: after(named(s), lambda p: p.update({"z": make(s, 1), "y": make(s, 2)})),
    "|": lambda s: repr(named(s) | s.ParameterDict({"z": make(s, 1), "a": 9})),
    "|=": lambda s: after(named(s), lambda p: p.__ior__(s.ParameterDict({"z": make(s, 1)}))),
    "dict |": lambda s: [*({"z": 1} | named(s))],
    "a missing name": lambda s: named(s)["z"],
    "delete a missing name": lambda s: named(s).__delitem__("z"),
    "pop a missing name": lambda s: named(s).pop("z"),
    "a number as name": lambda s: named(s)[1],
    "set a number": lambda s: named(s).__setitem__(1, 2),
    "a method's name": lambda s: s.ParameterDict({"keys": make(s, 1)}),
    "a dotted name": lambda s: s.ParameterDict({"a.b": make(s, 1)}),
    "update by a number": lambda s: named(s).update(3),
    "update by numbers": lambda s: named(s).update([3]),
    "update by triples": lambda s: named(s).update([("a", 1, 2)]),
    "call": lambda s: named(s)(1),
}


@pytest.mark.parametrize("see", LISTS.values(), ids=LISTS)
def test_parameter_list_is_torchs(see):
    mine, theirs = observe(see)
    assert mine == theirs


@pytest.mark.parametrize("see", DICTS.values(), ids=DICTS)
def test_parameter_dict_is_torchs(see):
    mine, theirs = observe(see)
    assert mine == theirs


def test_messages():
    with pytest.raises(TypeError, match=r"ParameterDict: keys must be strings, got key=1"):
        nn.ParameterDict()[1]
    with pytest.raises(TypeError, match="ParameterList: extend takes an iterable that is not an array"):
        nn.ParameterList(np.ones(2))
    with pytest.raises(IndexError, match="ParameterList: index out of range, got index=0, length=0"):
        nn.ParameterList()[0]


class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = nn.ParameterList([np.ones((3, 3)) * (i + 1) for i in range(3)])
        self.extra = nn.ParameterDict({"shift": jnp.ones((1, 3)), "deep": nn.ParameterDict({"scale": nn.Parameter(jnp.full((1, 3), 2.0))})})
        self.shared = nn.ParameterList([self.experts[0]])

    def forward(self, x):
        for weight in (*self.experts[1:], self.shared[0]):
            x = x @ weight
        return x * self.extra["deep"]["scale"] + self.extra["shift"]


def test_in_the_pure_face_and_in_compiled_training():
    model, x = Mixture(), jnp.arange(6.0).reshape(2, 3)
    params, buffers = nn.split(model)
    assert {*params} == {"experts", "extra"}
    assert [*params["extra"]] == ["shift", "deep"]
    y, _ = nn.pure(model).apply(params, buffers, x)
    np.testing.assert_array_equal(y, model(x))
    _, grads = nn.value_and_grad(lambda m, x: jnp.sum(m(x)))(model, x)
    expected = jax.grad(lambda p: jnp.sum(nn.pure(model).apply(p, buffers, x)[0]))(params)
    jax.tree.map(np.testing.assert_allclose, grads, expected)


def test_copies_and_pickles():
    model, x = Mixture(), jnp.ones((1, 3))
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(again(x), model(x))
        assert again.experts[0] is again.shared[0] is not model.experts[0]
        again.extra["new"] = jnp.ones(1)
        assert "new" not in model.extra


def test_state_dicts_load_both_ways():
    mine, theirs = (s.ParameterList([named(s), make(s, 2)]) for s in (nn, torch.nn))
    mine.load_state_dict({k: v.numpy() * 3 for k, v in theirs.state_dict().items()})
    assert theirs.load_state_dict({k: torch.tensor(np.asarray(v)) for k, v in mine.state_dict().items()}).missing_keys == []
    assert theirs[1][0].item() == 3


def test_a_structure_with_a_parameter_dict_is_remembered():
    from jnn.module.structure import structure

    model = Mixture()
    assert structure(model) is structure(model)
    model.extra["late"] = jnp.ones(1)
    assert "extra.late" in structure(model).params
