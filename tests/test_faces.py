"""The three faces of every row are one computation."""

from __future__ import annotations

import copy
import pickle
import warnings

import jax
import numpy as np
import pytest

import jnn

from . import oracle
from .oracle import ids, rows

pytestmark = pytest.mark.usefixtures("quick_compilation")


def same_tree(a, b):
    """Equal trees, bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.mark.parametrize("case", rows(test="pure"), ids=ids)
def test_pure_layer_and_module_are_one_program(case, key):
    layer, module = oracle.spec(case), oracle.module(case, dtype=np.float32)
    pure = jnn.pure(module)
    params, buffers = layer.init(key)
    same_tree((params, buffers), pure.init(key))
    args, call = oracle.jax_inputs(case, np.float32)
    floats, rebuild = oracle.split_floats((args, call))

    def run(face, floats):
        a, k = rebuild(floats)
        return face.apply(params, buffers, *a, train=True, key=key, **k)

    programs = [str(jax.make_jaxpr(lambda f, face=face: run(face, f))(floats)) for face in (layer, pure)]
    assert programs[0] == programs[1]
    assert repr(layer) == repr(module)


@pytest.mark.parametrize("case", rows(test="faces"), ids=ids)
def test_live_module_functional_call_and_pure_agree(case):
    module = oracle.module(case, train=False)
    args, call = oracle.jax_inputs(case)
    params, buffers = jnn.split(module)
    expected = jnn.pure(module).apply(params, buffers, *args, **call)[0]
    live = module(*args, **call)
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    called = jnn.func.functional_call(module, {n: v.detach() for n, v in state.items()}, tuple(args), call)
    for got in (live, called):
        oracle.assert_close(got, expected, 1e-9, 1e-11)


@pytest.mark.parametrize("case", rows(test="copies"), ids=ids)
def test_copies_are_equal_and_apart(case):
    module = oracle.module(case, train=False)
    args, call = oracle.jax_inputs(case)
    expected = module(*args, **call)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        oracle.assert_close(twin(*args, **call), expected, 0, 0)
        assert not {id(p) for p in twin.parameters()} & {id(p) for p in module.parameters()}
        assert twin != module


@pytest.mark.parametrize("case", rows(test="pure"), ids=ids)
def test_a_layer_is_hashable_and_equal_to_its_like(case):
    a, b = oracle.spec(case), oracle.spec(case)
    assert a == b
    assert hash(a) == hash(b)
    assert pickle.loads(pickle.dumps(a)) == a


@pytest.mark.parametrize("case", rows(test="narrow"), ids=ids)
def test_without_x64(case):
    """With JAX's default of 32 bits nothing warns, and nothing becomes wider or fails."""
    with jax.enable_x64(False), warnings.catch_warnings():
        warnings.simplefilter("error")
        module = oracle.module(case, dtype=np.float32)
        args, call = oracle.jax_inputs(case, np.float32)
        out = module(*args, **call)
    for leaf in oracle.leaves(out):
        assert not hasattr(leaf, "dtype") or leaf.dtype.itemsize <= 4 or leaf.dtype == np.complex64
