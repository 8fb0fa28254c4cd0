"""Embeddings: indices out of range, padding, renormalisation, bags at their edges, one_hot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jnn
import jnn.functional as F
from jnn import layers

TABLE = np.arange(12.0).reshape(6, 2)


@pytest.mark.parametrize("bad", [6, -1])
def test_index_out_of_range(bad):
    index = jnp.array([0, bad, 5])
    with pytest.raises(IndexError, match=rf"embedding: input must be in \[0, 5\], got input={bad}"):
        F.embedding(index, TABLE)
    grad = jax.jit(jax.grad(lambda w, i: jnp.nansum(F.embedding(i, w))))(jnp.asarray(TABLE), index)
    rows = jax.jit(F.embedding)(index, TABLE)
    np.testing.assert_array_equal(rows, [TABLE[0], [np.nan, np.nan], TABLE[5]])
    np.testing.assert_array_equal(grad.sum(1), [2, 0, 0, 0, 0, 2])
    for mode in ("sum", "mean", "max"):
        with pytest.raises(RuntimeError, match=rf"embedding_bag: input must be in \[0, 5\], got input={bad}"):
            F.embedding_bag(index, TABLE, jnp.array([0]), mode=mode)
        for args in ((index[None], TABLE), (index, TABLE, jnp.array([0]))):
            assert np.isnan(jax.jit(lambda *a, mode=mode: F.embedding_bag(*a, mode=mode))(*args)).all()


@pytest.mark.parametrize("offsets", [[1, 2], [0, 4], [0, 2, 1]])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_offsets_out_of_range(offsets, mode):
    args = (jnp.array([1, 2, 3]), TABLE, jnp.array(offsets))
    with pytest.raises(RuntimeError, match="embedding_bag: offsets must start at 0, never decrease and stay within input"):
        F.embedding_bag(*args, mode=mode)
    assert np.isnan(jax.jit(lambda *a: F.embedding_bag(*a, mode=mode))(*args)).all()


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_edges_of_bags(mode):
    """Empty bags are 0, indices after the last offset belong nowhere, and no bag at all is no row."""
    w = -1 - TABLE
    y = F.embedding_bag(jnp.array([1, 2, 3]), w, jnp.array([0, 0, 2, 3, 3]), mode=mode)
    np.testing.assert_array_equal(y[jnp.array([0, 3, 4])], np.zeros((3, 2)))
    y = F.embedding_bag(jnp.array([1, 2, 3]), w, jnp.array([0, 1]), mode=mode, include_last_offset=True)
    np.testing.assert_array_equal(y, w[1:2])
    empty = jnp.zeros(0, np.int64)
    assert F.embedding_bag(jnp.array([1]), w, empty, mode=mode).shape == (0, 2)
    np.testing.assert_array_equal(F.embedding_bag(empty, w, jnp.array([0, 0]), mode=mode), np.zeros((2, 2)))
    np.testing.assert_array_equal(F.embedding_bag(empty.reshape(2, 0), w, mode=mode), np.zeros((2, 2)))
    assert F.embedding_bag(empty.reshape(0, 2), w, mode=mode).shape == (0, 2)
    np.testing.assert_array_equal(F.embedding_bag(jnp.full((1, 2), 3), w, mode=mode, padding_idx=3), np.zeros((1, 2)))


@pytest.mark.parametrize("bags", [(np.array([[0, 1, 2]]),), (np.array([0, 1, 2]), np.array([0]))], ids=["equal", "ragged"])
def test_maximum_gives_its_gradient_to_the_first_and_propagates_nan(bags):
    def grad(w):
        return jax.grad(lambda w: F.embedding_bag(bags[0], w, *bags[1:], mode="max").sum())(jnp.asarray(w))

    np.testing.assert_array_equal(grad([[1.0, 2], [1, 3], [0, 3]]), [[1, 0], [0, 1], [0, 0]])
    w = np.array([[1.0, 2], [np.nan, 3], [0, np.inf]])
    np.testing.assert_array_equal(F.embedding_bag(bags[0], w, *bags[1:], mode="max"), [[np.nan, np.inf]])


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.5, np.inf, 0.0])
def test_max_norm(norm_type):
    """Torch's values and gradients; the table itself stays."""
    index = np.array([0, 4, 4, 1])
    theirs = torch.tensor(TABLE, requires_grad=True)
    out = torch.nn.functional.embedding(torch.tensor(index), theirs, max_norm=1.5, norm_type=norm_type)
    (expected,) = torch.autograd.grad((out**3).sum(), theirs)
    w = jnp.asarray(TABLE)
    np.testing.assert_allclose(F.embedding(index, w, max_norm=1.5, norm_type=norm_type), out.detach(), rtol=1e-12)
    grad = jax.grad(lambda w: (F.embedding(index, w, max_norm=1.5, norm_type=norm_type) ** 3).sum())(w)
    np.testing.assert_allclose(grad, expected, rtol=1e-12)
    module = jnn.Embedding(6, 2, max_norm=1.5, norm_type=norm_type, _weight=w)
    module(index)
    np.testing.assert_array_equal(module.weight, TABLE)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_scale_grad_by_freq_of_bags_divides_by_the_rows_own_count(mode):
    """Not compared with torch, whose CPU kernel takes the count of another row unless all counts are equal."""
    index, bags = jnp.array([1, 1, 2, 1, 0]), jnp.array([0, 2])

    def grad(**kw):
        return jax.grad(lambda w: (F.embedding_bag(index, w, bags, mode=mode, **kw) * jnp.array([[1.0], [3.0]])).sum())(jnp.asarray(TABLE))

    count = np.array([[1.0], [3], [1], [1], [1], [1]])
    np.testing.assert_allclose(grad(scale_grad_by_freq=True), grad() / count, rtol=1e-12)


def test_vmap_over_indices():
    index, bags = jnp.array([[0, 3, 3], [5, 1, 2]]), jnp.array([[0, 1], [0, 3]])
    np.testing.assert_array_equal(jax.vmap(F.embedding, (0, None))(index, TABLE), TABLE[index])
    for mode in ("sum", "mean", "max"):
        each = [F.embedding_bag(i, TABLE, b, mode=mode) for i, b in zip(index, bags, strict=True)]
        batched = jax.vmap(lambda i, b, mode=mode: F.embedding_bag(i, TABLE, b, mode=mode))(index, bags)
        np.testing.assert_allclose(batched, jnp.stack(each), rtol=1e-12)


def test_padding_row_starts_as_zeros_and_gets_no_gradient(key):
    for spec in (layers.Embedding(5, 3, -2), layers.EmbeddingBag(5, 3, padding_idx=-2)):
        params, _ = spec.init(key)
        assert spec.padding_idx == 3
        assert (np.abs(params["weight"]).sum(1) == 0).tolist() == [False] * 3 + [True, False]
        grad = jax.grad(lambda p, spec=spec: spec.apply(p, {}, jnp.array([[3, 1, 3]]))[0].sum())(params)
        assert not grad["weight"][3].any()
        assert grad["weight"][1].any()


def test_initial_table_is_standard_normal(key):
    weight = layers.Embedding(200, 100).init(key)[0]["weight"]
    assert weight.dtype == np.float32
    np.testing.assert_allclose([weight.mean(), weight.std()], [0, 1], atol=0.02)


@pytest.mark.parametrize("name", ["Embedding", "EmbeddingBag"])
def test_from_pretrained_on_both_faces(name, key):
    index = jnp.array([[0, 5]])
    for freeze in (True, False):
        module = getattr(jnn, name).from_pretrained(jnp.asarray(TABLE), freeze=freeze, padding_idx=-1)
        assert isinstance(module, getattr(jnn, name))
        assert module.weight.requires_grad is not freeze
        spec = getattr(layers, name).from_pretrained(TABLE, freeze, padding_idx=-1)
        params, buffers = spec.init(key)
        np.testing.assert_array_equal((buffers if freeze else params)["weight"], TABLE)
        assert bool(params) is not freeze
        np.testing.assert_array_equal(spec.apply(params, buffers, index)[0], module(index))
        assert hash(spec) == hash(getattr(layers, name).from_pretrained(TABLE, freeze, padding_idx=-1))
    with pytest.raises(AssertionError, match=rf"{name}: embeddings must have two dimensions, got shape=\(2,\)"):
        getattr(jnn, name).from_pretrained(TABLE[0])


def test_frozen_table_is_not_trained(key):
    frozen = jnn.Embedding.from_pretrained(jnp.asarray(TABLE))
    params, buffers = jnn.split(frozen)
    assert params == {}
    np.testing.assert_array_equal(buffers["weight"], TABLE)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: F.embedding(jnp.ones(2), TABLE), RuntimeError, "embedding: input must be integers, got dtype=float64"),
        (lambda: F.embedding(jnp.array([0]), TABLE[0]), RuntimeError, "embedding: weight must be 2D"),
        (lambda: F.embedding(jnp.array([0]), TABLE, 6), AssertionError, "embedding: padding_idx must be within num_embeddings"),
        (lambda: F.embedding(jnp.array([0]), TABLE, -7), AssertionError, "embedding: padding_idx must be within num_embeddings"),
        (lambda: F.embedding_bag(jnp.array([0]), TABLE), ValueError, "embedding_bag: input of one dimension needs offsets"),
        (lambda: F.embedding_bag(jnp.array([[0]]), TABLE, jnp.array([0])), ValueError, "input of two dimensions takes no offsets"),
        (lambda: F.embedding_bag(jnp.array([0]), TABLE, jnp.array([[0]])), ValueError, "embedding_bag: offsets must be 1D"),
        (lambda: F.embedding_bag(jnp.array([0]), TABLE, jnp.array([0.0])), RuntimeError, "embedding_bag: offsets must be integers"),
        (lambda: F.embedding_bag(jnp.array([[0]]), TABLE, mode="x"), ValueError, "mode must be one of 'sum', 'mean', 'max', got mode='x'"),
        (lambda: F.embedding_bag(jnp.array([[0]]), TABLE, padding_idx=6), RuntimeError, "embedding_bag: padding_idx must be within"),
        (
            lambda: F.embedding_bag(jnp.array([[0]]), TABLE, mode="max", scale_grad_by_freq=True),
            ValueError,
            "mode 'max' takes neither scale_grad_by_freq nor sparse",
        ),
        (
            lambda: F.embedding_bag(jnp.array([[0]]), TABLE, per_sample_weights=jnp.ones((1, 1))),
            NotImplementedError,
            "per_sample_weights needs mode 'sum', got mode='mean'",
        ),
        (
            lambda: F.embedding_bag(jnp.array([[0]]), TABLE, per_sample_weights=jnp.ones(1), mode="sum"),
            ValueError,
            "per_sample_weights must have the shape of input",
        ),
        (
            lambda: F.embedding_bag(jnp.array([0]), TABLE, jnp.zeros(0, int), include_last_offset=True),
            RuntimeError,
            "offsets must not be empty with include_last_offset",
        ),
        (lambda: jnn.Embedding(3, 2, 3), AssertionError, "Embedding: padding_idx must be within num_embeddings, got padding_idx=3"),
        (lambda: jnn.Embedding(3, 2, _weight=jnp.ones((2, 2))), AssertionError, r"Embedding: _weight must be \(num_embeddings"),
        (lambda: F.one_hot(jnp.ones(2)), RuntimeError, "one_hot: input must be integers, got dtype=float64"),
        (lambda: F.one_hot(jnp.array([-1])), RuntimeError, "one_hot: "),
        (lambda: F.one_hot(jnp.array([-1, 1])), RuntimeError, r"one_hot: input must be in \[0, 1\], got input=-1"),
        (lambda: F.one_hot(jnp.array([3]), 2), RuntimeError, r"one_hot: input must be in \[0, 1\], got input=3"),
        (lambda: F.one_hot(jnp.zeros(0, int)), RuntimeError, "one_hot: num_classes cannot be told from an empty input"),
        (lambda: F.one_hot(jnp.array([1]), -2), RuntimeError, "one_hot: num_classes must be positive, got num_classes=-2"),
        (lambda: jax.jit(F.one_hot)(jnp.array([1])), RuntimeError, "one_hot: num_classes cannot be told from a traced input"),
    ],
)
def test_refusals(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_old_order_of_arguments():
    with pytest.warns(UserWarning, match=r"embedding_bag: \(weight, input\) is the deprecated order"):
        y = F.embedding_bag(TABLE, jnp.array([[0, 2]]))
    np.testing.assert_array_equal(y, [[2.0, 3.0]])


def test_one_hot():
    x = np.array([[0, 3], [1, 1]])
    y = F.one_hot(x)
    assert y.dtype == np.int64
    np.testing.assert_array_equal(y, torch.nn.functional.one_hot(torch.tensor(x)))
    np.testing.assert_array_equal(jax.jit(lambda i: F.one_hot(i, 4))(x), y)
    assert not jax.jit(lambda i: F.one_hot(i, 4))(jnp.array([4, -1])).any()
    assert F.one_hot(jnp.zeros(0, int), 3).shape == (0, 3)
    assert F.one_hot(jnp.array(2)).tolist() == [0, 0, 1]
