"""Recurrent layers: lengths as data, placement on a mesh, gradients of the loop, refusals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import PartitionSpec as P

import jnn
from jnn import layers as L
from jnn.utils.rnn import pack_padded_sequence, pad_packed_sequence

pytestmark = pytest.mark.usefixtures("quick_compilation")

KINDS = [("RNN", {}), ("RNN", {"nonlinearity": "relu"}), ("GRU", {}), ("LSTM", {}), ("LSTM", {"proj_size": 2})]
kinds = pytest.mark.parametrize(("name", "kw"), KINDS, ids=lambda x: str(x).replace(" ", ""))


def pair(name, *args, **kw):
    """torch's layer and ours with the same weights, in float64."""
    theirs = getattr(torch.nn, name)(*args, **kw).double()
    mine = getattr(jnn, name)(*args, **kw).double()
    mine.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    return mine, theirs


def states(x):
    return list(x) if isinstance(x, tuple) else [x]


@kinds
@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_as_data_equal_the_packed_form(name, kw, batch_first, rng):
    mine, theirs = pair(name, 3, 4, 2, bidirectional=True, batch_first=batch_first, **kw)
    lengths = np.array([2, 5, 1, 3])
    x = rng.standard_normal((4, 5, 3) if batch_first else (5, 4, 3))
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.tensor(x), torch.tensor(lengths), batch_first, enforce_sorted=False)
    out, expected = theirs(packed)
    padded, _ = torch.nn.utils.rnn.pad_packed_sequence(out, batch_first)
    params, buffers = jnn.split(mine)

    @jax.jit
    def run(params, x, lengths):
        return jnn.pure(mine).apply(params, buffers, x, lengths=lengths)[0]

    y, final = run(params, x, lengths)
    np.testing.assert_allclose(y, padded.detach().numpy(), rtol=1e-9, atol=1e-12)
    for a, b in zip(states(final), states(expected), strict=True):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-9, atol=1e-12)
    packed_y, packed_final = mine(pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False))
    np.testing.assert_allclose(pad_packed_sequence(packed_y, batch_first)[0], y, rtol=1e-9, atol=1e-12)
    for a, b in zip(states(packed_final), states(final), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_a_sequence_of_length_zero_keeps_its_state(rng):
    lstm = jnn.LSTM(3, 4).double()
    h, c = rng.standard_normal((2, 1, 2, 4))
    y, (h1, c1) = lstm(rng.standard_normal((5, 2, 3)), (h, c), lengths=np.array([0, 5]))
    np.testing.assert_array_equal(h1[:, 0], h[:, 0])
    np.testing.assert_array_equal(c1[:, 0], c[:, 0])
    assert not y[:, 0].any()


def test_padding_does_not_reach_gradients(rng):
    gru = jnn.GRU(3, 4, bidirectional=True).double()
    x = rng.standard_normal((5, 2, 3))
    x[3:, 0] = np.nan
    grad = jax.grad(lambda x: gru(x, lengths=np.array([3, 5]))[0][:3].sum())(jnp.asarray(x))
    assert np.isfinite(grad[:3]).all()
    np.testing.assert_array_equal(np.nan_to_num(grad[3:, 0]), 0)


@kinds
def test_gradients_agree_with_a_loop_over_steps(name, kw, rng):
    """First and second derivatives of the scanned rule against the same cell written out."""
    spec = getattr(L, name)(2, 3, **kw)
    params, _ = jax.tree.map(lambda a: a.astype(np.float64), spec.init(jax.random.key(0)))
    x = jnp.asarray(rng.standard_normal((3, 2, 2)))

    def whole(params, x):
        return jnp.sin(spec.apply(params, {}, x)[0][0]).sum()

    def stepped(params, x):
        state, total = None, 0.0
        for row in x:
            y, state = spec.apply(params, {}, row[None], state)[0]
            total += jnp.sin(y).sum()
        return total

    direction = jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape)), (params, x))
    for second in (False, True):
        fs = [jax.grad(f, argnums=(0, 1)) for f in (whole, stepped)]
        if second:
            fs = [lambda *at, f=f: jax.jvp(f, at, direction)[1] for f in fs]
        got, expected = (jax.tree.leaves(jax.jit(f)(params, x)) for f in fs)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


@kinds
def test_a_sharded_batch_needs_no_care(name, kw, rng):
    spec = getattr(L, name)(3, 4, 2, bidirectional=True, **kw)
    params, _ = spec.init(jax.random.key(0))
    x = jnp.asarray(rng.standard_normal((5, 4, 3)), np.float32)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    run = jax.shard_map(lambda p, x: spec.apply(p, {}, x)[0][0], mesh=mesh, in_specs=(P(), P(None, "data")), out_specs=P(None, "data"))
    np.testing.assert_allclose(jax.jit(run)(params, x), spec.apply(params, {}, x)[0][0], rtol=1e-5, atol=1e-6)


def test_the_program_does_not_grow_with_the_sequence():
    spec = L.LSTM(3, 4)
    params, _ = spec.init(jax.random.key(0))

    def size(steps):
        loss = jax.grad(lambda p, x: spec.apply(p, {}, x)[0][0].sum())
        return len(jax.jit(loss).lower(params, jnp.zeros((steps, 2, 3), np.float32)).as_text().splitlines())

    assert size(2000) == size(20)


def test_dropout_acts_between_layers_only(key):
    spec = L.RNN(3, 4, 2, dropout=1.0)
    params, _ = spec.init(key)
    params["bias_ih_l1"] = params["bias_hh_l1"] = jnp.zeros(4, np.float32)
    x = jnp.ones((5, 2, 3), np.float32)
    (y, h), _ = spec.apply(params, {}, x, train=True, key=key)
    assert not y.any()
    assert h[0].any()
    with pytest.raises(RuntimeError, match="random numbers need a key"):
        L.RNN(3, 4, 2, dropout=0.5).apply(params, {}, x, train=True)
    with pytest.warns(UserWarning, match="dropout acts between layers"):
        L.RNN(3, 4, dropout=0.5)


def test_weights_are_listed_by_layer_and_direction():
    lstm = jnn.LSTM(2, 4, 2, bidirectional=True, proj_size=3)
    assert [[w.shape for w in ws] for ws in lstm.all_weights] == [
        [tuple(w.shape) for w in ws] for ws in torch.nn.LSTM(2, 4, 2, bidirectional=True, proj_size=3).all_weights
    ]
    assert lstm.flatten_parameters() is None
    assert isinstance(lstm, jnn.RNNBase)
    assert isinstance(jnn.GRUCell(2, 3), jnn.RNNCellBase)


def test_a_subclass_of_the_cell_base_brings_its_own_gates():
    assert jnn.RNNCellBase(2, 3, True, 5).weight_ih.shape == (15, 2)


def test_empty_batches():
    y, h = jnn.GRU(3, 4)(np.zeros((5, 0, 3), np.float32))
    assert y.shape == (5, 0, 4)
    assert h.shape == (1, 0, 4)


X = np.zeros((5, 2, 3), np.float32)


@pytest.mark.parametrize(
    ("exc", "match", "call"),
    [
        (ValueError, "LSTM: dropout must be a number", lambda: jnn.LSTM(3, 4, 2, dropout=1.5)),
        (ValueError, "LSTM: proj_size must be below hidden_size", lambda: jnn.LSTM(3, 4, proj_size=4)),
        (ValueError, "GRU: only an LSTM takes proj_size", lambda: jnn.GRU(3, 4, proj_size=2)),
        (ValueError, "RNN: nonlinearity must be one of", lambda: jnn.RNN(3, 4, nonlinearity="selu")),
        (ValueError, "RNNBase: mode must be one of", lambda: jnn.RNNBase("SRU", 3, 4)),
        (TypeError, "GRU: bias must be a bool", lambda: jnn.GRU(3, 4, bias=1)),
        (TypeError, "GRU: hidden_size must be an integer", lambda: jnn.GRU(3, 4.0)),
        (RuntimeError, "RNNCell: nonlinearity must be", lambda: jnn.RNNCell(3, 4, nonlinearity="selu")),
        (ValueError, "GRU: input must be 2D or 3D", lambda: jnn.GRU(3, 4)(X[0, 0])),
        (ValueError, "GRU: input must have the dtype of the weights", lambda: jnn.GRU(3, 4)(X.astype(np.float64))),
        (RuntimeError, "GRU: the last dimension must be input_size", lambda: jnn.GRU(2, 4)(X)),
        (RuntimeError, "GRU: the sequence must have at least one step", lambda: jnn.GRU(3, 4)(X[:0])),
        (RuntimeError, r"GRU: hx must have shape \(1, 2, 4\)", lambda: jnn.GRU(3, 4)(X, X[:1])),
        (RuntimeError, "GRU: hx must be 2D", lambda: jnn.GRU(3, 4)(X[:, 0], X)),
        (RuntimeError, "LSTM: hx must be a tuple", lambda: jnn.LSTM(3, 4)(X, X)),
        (RuntimeError, r"LSTM: hx\[1\] must have shape", lambda: jnn.LSTM(3, 3)(X, (X[:1], X))),
        (RuntimeError, r"GRU: lengths must have shape \(2,\)", lambda: jnn.GRU(3, 4)(X, lengths=[1])),
        (RuntimeError, r"GRU: lengths must be in \[0, 5\]", lambda: jnn.GRU(3, 4)(X, lengths=[1, 6])),
        (RuntimeError, "GRUCell: the last dimension must be input_size", lambda: jnn.GRUCell(2, 4)(X[0])),
        (RuntimeError, "LSTMCell: hx must be a tuple", lambda: jnn.LSTMCell(3, 3)(X[0], X[0])),
    ],
)
def test_refusals(exc, match, call):
    with pytest.raises(exc, match=match):
        call()
