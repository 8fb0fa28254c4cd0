"""Under ``shard_map`` with types of what varies, values and gradients are those of one device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jnn.functional as F
from jnn import layers as L
from jnn.kernels.platform import lowering

LSTM = L.LSTM(5, 3, dtype=np.float64)


def _lstm(x, w):
    params, buffers = LSTM.init(jax.random.key(0))
    return LSTM.apply(jax.tree.map(lambda v: v * w, params), buffers, x.transpose(1, 0, 2))[0][0].transpose(1, 0, 2)


def _ctc(x, w):
    log_probs = F.log_softmax(x.transpose(1, 0, 2) * w, -1)
    n = len(x)
    return F.ctc_loss(log_probs, jnp.ones((n, 2), int), jnp.full(n, 6), jnp.full(n, 2), reduction="none")


# A function, and the shapes of what is split over the devices and of what they share.
CASES = {
    "conv2d": (lambda x, w: F.conv2d(x, w, padding=1), (4, 3, 8, 8), (5, 3, 3, 3)),
    "depthwise": (lambda x, w: F.conv2d(x, w, groups=3), (4, 3, 8, 8), (3, 1, 3, 3)),
    "conv_transpose2d": (lambda x, w: F.conv_transpose2d(x, w, stride=2), (4, 3, 8, 8), (3, 5, 3, 3)),
    "linear": (F.linear, (4, 8), (3, 8)),
    "bilinear": (lambda x, w: F.bilinear(x, x, w), (4, 8), (3, 8, 8)),
    "embedding": (lambda x, w: F.embedding((jax.lax.stop_gradient(x) > 0).astype(int), w) * x[..., None], (4, 4), (4, 3)),
    "unfold": (lambda x, w: F.unfold(x, 2) * w, (4, 2, 4, 4), ()),
    "fold": (lambda x, w: F.fold(x, (4, 4), 2) * w, (4, 8, 9), ()),
    "max_pool2d": (lambda x, w: F.max_pool2d(x * w, 2), (4, 2, 4, 4), ()),
    "adaptive_max_pool2d": (lambda x, w: F.adaptive_max_pool2d(x, 3) * w, (4, 2, 4, 4), ()),
    "interpolate": (lambda x, w: F.interpolate(x, scale_factor=2, mode="bilinear") * w, (4, 2, 4, 4), ()),
    "group_norm": (lambda x, w: F.group_norm(x, 2, w, w), (4, 4, 4, 4), (4,)),
    "attention": (lambda x, w: F.scaled_dot_product_attention(x, x, x * w), (4, 2, 4, 4), ()),
    "linear_cross_entropy": (
        lambda x, w: F.linear_cross_entropy(x, w, jnp.zeros(len(x), int), reduction="none"),
        (4, 8),
        (5, 8),
    ),
    "ctc_loss": (_ctc, (4, 6, 5), ()),
    "LSTM": (_lstm, (4, 6, 5), ()),
}


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_gradients_of_what_is_split_and_of_what_is_shared(name, library, rng, quick_compilation):
    function, *shapes = CASES[name]
    arrays = [jnp.asarray(rng.standard_normal(shape)) for shape in shapes]
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = jax.P("d"), jax.P()

    def slopes(x, w):
        return jax.grad(lambda x, w: (function(x, w) ** 2).sum(), (0, 1))(x, w)

    with lowering(native=False, library=library):
        jax.clear_caches()
        found = jax.jit(jax.shard_map(slopes, mesh=mesh, in_specs=specs, out_specs=specs))(*arrays)
        expected = slopes(*arrays)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
