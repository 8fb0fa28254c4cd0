"""Unfold and Fold: refusals, and that one is the transpose of the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jnn
import jnn.functional as F

IMAGE, COLUMNS = jnp.ones((1, 2, 3, 4)), jnp.ones((1, 8, 6))


@pytest.mark.parametrize(
    ("x", "args", "match"),
    [
        (IMAGE[0, 0], (2,), "input must be 3D or 4D"),
        (IMAGE, (5,), "must fit into the padded image"),
        (IMAGE, (0,), "kernel_size must be at least 1"),
        (IMAGE, (1, 0), "dilation must be at least 1"),
        (IMAGE, (1, 1, -1), "padding must be at least 0"),
        (IMAGE, (1, 1, 0, 0), "stride must be at least 1"),
        (IMAGE, ((1, 1, 1),), "kernel_size must be an int or 2 ints"),
        (IMAGE[:, :0], (1,), "only the batch may be empty"),
    ],
)
def test_unfold_refusals(x, args, match):
    with pytest.raises(RuntimeError, match=f"unfold: .*{match}"):
        F.unfold(x, *args)


@pytest.mark.parametrize(
    ("x", "args", "match"),
    [
        (COLUMNS[None], ((3, 4), 2), "input must be 2D or 3D"),
        (COLUMNS[:, :7], ((3, 4), 2), "must divide the columns' length"),
        (COLUMNS[..., :5], ((3, 4), 2), "6 blocks fit into output_size"),
        (COLUMNS[..., :0], ((3, 4), 2), "only the batch may be empty"),
        (COLUMNS, (1, 2), "must fit into the padded image"),
        (COLUMNS, ((3, 4, 5), 2), "output_size must be an int or 2 ints"),
        (COLUMNS.astype(int), ((3, 4), 2), "input must be floating point"),
    ],
)
def test_fold_refusals(x, args, match):
    with pytest.raises(RuntimeError, match=f"fold: .*{match}"):
        F.fold(x, *args)


def test_layers_check_their_configuration():
    with pytest.raises(RuntimeError, match="Unfold: stride must be at least 1"):
        jnn.Unfold(2, stride=0)
    with pytest.raises(RuntimeError, match="Fold: output_size must be an int or 2 ints"):
        jnn.Fold((1, 2, 3), 2)


@pytest.mark.parametrize("batch", [(), (2,), (0,)])
def test_fold_is_the_transpose_of_unfold(batch, rng):
    geometry = ((3, 2), (1, 2), (1, 2), (2, 1))
    x = rng.standard_normal((*batch, 2, 5, 4))
    y = rng.standard_normal(torch.nn.functional.unfold(torch.tensor(x), *geometry).shape)
    np.testing.assert_allclose(np.vdot(F.unfold(x, *geometry), y), np.vdot(x, F.fold(y, (5, 4), *geometry)), rtol=1e-10)


def test_fold_sums_half_types_in_single_precision():
    y = jnp.asarray(np.random.default_rng(0).uniform(size=(1, 49, 256)), jnp.bfloat16)
    folded = F.fold(y, 16, 7, padding=3)
    exact = F.fold(y.astype(np.float64), 16, 7, padding=3)
    np.testing.assert_allclose(folded.astype(np.float64), exact, rtol=float(jnp.finfo(jnp.bfloat16).eps))


def test_forward_mode(rng):
    y = rng.standard_normal((8, 6))
    tangent = jax.jvp(lambda y: F.fold(y, (3, 4), 2), (y,), (y,))[1]
    np.testing.assert_allclose(tangent, F.fold(y, (3, 4), 2))
