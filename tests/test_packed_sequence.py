"""Packed sequences against torch's."""

from __future__ import annotations

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn.utils import rnn as theirs

import jnn
from jnn.utils import rnn as mine

pytestmark = pytest.mark.usefixtures("quick_compilation")


def assert_same(a, b):
    for name, x, y in zip(a._fields, a, b, strict=True):
        if y is None:
            assert x is None, name
        else:
            assert str(x.dtype) == str(y.dtype).removeprefix("torch."), name
            np.testing.assert_array_equal(np.asarray(x), y.detach().numpy(), err_msg=name)


def draw(rng):
    n, longest = rng.integers(1, 6), rng.integers(1, 8)
    lengths = rng.integers(1, longest + 1, n)
    return lengths, rng.standard_normal((int(lengths.max() + rng.integers(0, 2)), n, 3))


def test_two_hundred_length_sets_round_trip_as_in_torch(rng):
    for _ in range(200):
        lengths, x = draw(rng)
        ordered = bool(rng.integers(2))
        batch_first = bool(rng.integers(2))
        lengths = np.sort(lengths)[::-1].copy() if ordered else lengths
        given = x.swapaxes(0, 1) if batch_first else x
        a = mine.pack_padded_sequence(given, lengths, batch_first, ordered)
        # Among equal lengths torch's sort may take any order; ours keeps the given one.
        b = theirs.pack_padded_sequence(torch.tensor(given.copy()), torch.tensor(lengths), batch_first, ordered)
        if ordered or len({*lengths}) == len(lengths):
            assert_same(a, b)
        total = int(lengths.max() + rng.integers(0, 3))
        padded, got = mine.pad_packed_sequence(a, batch_first, -1.0, total)
        padded_t, got_t = theirs.pad_packed_sequence(b, batch_first, -1.0, total)
        np.testing.assert_array_equal(padded, padded_t.numpy())
        np.testing.assert_array_equal(got, got_t.numpy())


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_layers_on_packed_sequences_equal_torch_with_gradients(name, rng):
    layer_t = getattr(torch.nn, name)(3, 4, 2, bidirectional=True).double()
    layer = getattr(jnn, name)(3, 4, 2, bidirectional=True).double()
    layer.load_state_dict({k: v.numpy() for k, v in layer_t.state_dict().items()})
    params, buffers = jnn.split(layer)
    for given_state in (False, True):
        lengths = rng.permutation([5, 3, 1, 4])
        x, h = rng.standard_normal((5, 4, 3)), rng.standard_normal((4, 4, 4))
        state = (h, h / 2) if name == "LSTM" else h
        state_t = jax.tree.map(torch.tensor, state) if given_state else None
        xt = torch.tensor(x, requires_grad=True)
        out_t, final_t = layer_t(theirs.pack_padded_sequence(xt, torch.tensor(lengths), enforce_sorted=False), state_t)
        finals_t = final_t if isinstance(final_t, tuple) else (final_t,)
        weights = [*layer_t.parameters()]
        grads_t = torch.autograd.grad(out_t.data.sin().sum() + sum(f.sin().sum() for f in finals_t), [xt, *weights])

        def loss(x, params, state=state if given_state else None, lengths=lengths):
            packed = mine.pack_padded_sequence(x, lengths, enforce_sorted=False)
            out, final = jnn.pure(layer).apply(params, buffers, packed, state)[0]
            return jnp.sin(out.data).sum() + sum(jnp.sin(f).sum() for f in jax.tree.leaves(final)), (out, final)

        (grad_x, grads), (out, final) = jax.grad(loss, argnums=(0, 1), has_aux=True)(jnp.asarray(x), params)
        np.testing.assert_allclose(out.data, out_t.data.detach().numpy(), rtol=1e-9, atol=1e-12)
        for a, b in zip(jax.tree.leaves(final), finals_t, strict=True):
            np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-9, atol=1e-12)
        for a, b in zip([grad_x, *(grads[n] for n, _ in layer_t.named_parameters())], grads_t, strict=True):
            np.testing.assert_allclose(a, b.numpy(), rtol=1e-8, atol=1e-10)


def test_a_packed_sequence_is_a_pytree(rng):
    lengths, x = np.array([2, 4, 3]), rng.standard_normal((4, 3, 3))
    packed = mine.pack_padded_sequence(x, lengths, enforce_sorted=False)
    gru = jnn.GRU(3, 4).double()
    expected, state = gru(packed)
    out, got = jax.jit(gru)(packed)
    assert isinstance(out, mine.PackedSequence)
    np.testing.assert_allclose(out.data, expected.data, rtol=1e-12)
    np.testing.assert_allclose(got, state, rtol=1e-12)
    padded, found = jax.jit(mine.pad_packed_sequence)(out)
    assert padded.shape == (4, 3, 4)
    np.testing.assert_array_equal(found, lengths)
    for twin in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed)), jax.tree.map(lambda a: a, packed)):
        assert isinstance(twin, mine.PackedSequence)
        np.testing.assert_array_equal(twin.data, packed.data)
    assert mine.PackedSequence((packed.data, packed.batch_sizes)).sorted_indices is None


def test_a_sorted_one_under_jit_takes_its_batch_size_from_the_state(rng):
    packed = mine.pack_padded_sequence(rng.standard_normal((4, 2, 3)), [4, 2])
    gru = jnn.GRU(3, 4).double()
    state = np.zeros((1, 2, 4))
    np.testing.assert_allclose(jax.jit(gru)(packed, state)[1], gru(packed)[1], rtol=1e-12)
    with pytest.raises(TypeError, match="GRU: under jit a packed sequence must be made with enforce_sorted=False"):
        jax.jit(gru)(packed)


def test_sequences(rng):
    sequences = [rng.standard_normal((n, 2)) for n in (2, 4, 1)]
    tensors = [torch.tensor(s) for s in sequences]
    for batch_first in (False, True):
        for side in ("right", "left"):
            a = mine.pad_sequence(sequences, batch_first, 7.0, side)
            np.testing.assert_array_equal(a, theirs.pad_sequence(tensors, batch_first, 7.0, side).numpy())
        padded = mine.pad_sequence(sequences, batch_first)
        for a, b in zip(mine.unpad_sequence(padded, np.array([2, 4, 1]), batch_first), sequences, strict=True):
            np.testing.assert_array_equal(a, b)
    packed = mine.pack_sequence(sequences, enforce_sorted=False)
    assert_same(packed, theirs.pack_sequence(tensors, enforce_sorted=False))
    for a, b in zip(mine.unpack_sequence(packed), sequences, strict=True):
        np.testing.assert_array_equal(a, b)
    order = np.array([2, 0, 1])
    np.testing.assert_array_equal(mine.invert_permutation(order), theirs.invert_permutation(torch.tensor(order)).numpy())
    assert mine.invert_permutation(None) is None


def test_conversions(rng):
    packed = mine.pack_padded_sequence(rng.standard_normal((4, 2)), [4, 2])
    for name in ("double", "float", "half", "long", "int", "short", "char", "byte"):
        expected = getattr(theirs.PackedSequence(torch.zeros(2), torch.tensor([2])), name)().data.dtype
        assert str(getattr(packed, name)().data.dtype) == str(expected).removeprefix("torch.")
    assert packed.to("cpu", jnp.float32).data.dtype == jnp.float32
    assert packed.to(device="cpu").cpu().pin_memory().is_pinned() is False
    assert packed.is_cuda is False


@pytest.mark.parametrize(
    ("exc", "match", "call"),
    [
        (RuntimeError, "lengths must be sorted", lambda: mine.pack_padded_sequence(np.zeros((3, 2)), [1, 3])),
        (RuntimeError, "lengths must be positive", lambda: mine.pack_padded_sequence(np.zeros((3, 2)), [3, 0])),
        (RuntimeError, "lengths must not exceed", lambda: mine.pack_padded_sequence(np.zeros((3, 2)), [4, 2])),
        (RuntimeError, "one length a sequence", lambda: mine.pack_padded_sequence(np.zeros((3, 2)), [3])),
        (RuntimeError, "input must not be empty", lambda: mine.pack_padded_sequence(np.zeros((0, 2)), [1, 1])),
        (TypeError, "lengths must be known", lambda: jax.jit(lambda n: mine.pack_padded_sequence(np.zeros((3, 2)), n))(np.array([3, 1]))),
        (RuntimeError, "at least one sequence", lambda: mine.pad_sequence([])),
        (RuntimeError, "sequences must be iterable", lambda: mine.pad_sequence(3)),
        (RuntimeError, "padding_side must be", lambda: mine.pad_sequence([np.zeros(2)], padding_side="up")),
        (RuntimeError, "trailing dimensions", lambda: mine.pad_sequence([np.zeros((2, 1)), np.zeros((2, 2))])),
        (
            ValueError,
            "total_length must be at least",
            lambda: mine.pad_packed_sequence(mine.pack_padded_sequence(np.zeros((3, 1)), [3]), total_length=2),
        ),
        (AssertionError, "data must be", lambda: mine.PackedSequence(np.zeros(3))),
    ],
)
def test_refusals(exc, match, call):
    with pytest.raises(exc, match=match):
        call()
