"""Flattening and shuffles: what the table does not say."""

import jax.numpy as jnp
import numpy as np
import pytest

import jnn
from jnn import functional as F


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: jnn.Flatten(2, 1)(x), RuntimeError, "Flatten: start_dim must not come after end_dim"),
        (lambda x: jnn.Flatten(1, 4)(x), IndexError, r"Flatten: end_dim must be in \[-4, 3\], got end_dim=4"),
        (lambda x: jnn.Unflatten(1, (2, 2))(x), RuntimeError, "Unflatten: unflattened_size must multiply to the size of dim"),
        (lambda x: jnn.Unflatten(1, (-1, -1))(x), RuntimeError, "unflattened_size must multiply"),
        (lambda x: jnn.Unflatten(1, (0, -1))(x), RuntimeError, "unflattened_size must multiply"),
        (lambda x: jnn.Unflatten(1, ())(x), RuntimeError, "unflattened_size must multiply"),
        (lambda x: jnn.Unflatten(1, 8), TypeError, "Unflatten: unflattened_size must be a tuple of ints"),
        (lambda x: jnn.Unflatten(1, (2.0, 4)), TypeError, "Unflatten: unflattened_size must be an integer"),
        (lambda x: F.pixel_shuffle(x, 3), RuntimeError, r"pixel_shuffle: upscale_factor\^2 must divide the channels"),
        (lambda x: F.pixel_shuffle(x, 0), RuntimeError, "upscale_factor must be positive"),
        (lambda x: F.pixel_shuffle(x[0, 0], 1), RuntimeError, "pixel_shuffle: input must have at least three dimensions"),
        (lambda x: F.pixel_unshuffle(x, 3), RuntimeError, "downscale_factor must divide height and width"),
        (lambda x: F.channel_shuffle(x, 3), RuntimeError, "channel_shuffle: groups must divide the channels, got channels=8, groups=3"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call(jnp.ones((2, 8, 4, 4)))


def test_scalars_and_empty_arrays():
    assert jnn.Flatten(0)(jnp.ones(())).shape == (1,)
    assert jnn.Flatten()(jnp.ones((0, 2, 3))).shape == (0, 6)
    assert jnn.Unflatten(0, (2, -1))(jnp.ones((0, 3))).shape == (2, 0, 3)
    assert F.pixel_shuffle(jnp.ones((2, 0, 4, 1, 2)), 2).shape == (2, 0, 1, 2, 4)


def test_unshuffle_undoes_shuffle(rng):
    x = jnp.asarray(rng.standard_normal((3, 2, 8, 2, 5)))
    np.testing.assert_array_equal(F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2), x)
