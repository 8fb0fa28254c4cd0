"""What one writes by hand in JAX for torch.nn's heavier operations: the obvious lowering, that jnn is measured against."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def conv(x, w, b=None, stride=1, padding=0, dilation=1, groups=1):
    n = x.ndim - 2
    y = lax.conv_general_dilated(x, w, [stride] * n, [(padding, padding)] * n, rhs_dilation=[dilation] * n, feature_group_count=groups)
    return y if b is None else y + b.reshape(-1, *[1] * n)


def conv_transpose(x, w, stride=1, padding=0, output_padding=0):
    n, k = x.ndim - 2, w.shape[2]
    flipped = jnp.flip(w, range(2, 2 + n)).swapaxes(0, 1)
    pads = [(k - 1 - padding, k - 1 - padding + output_padding)] * n
    return lax.conv_general_dilated(x, flipped, [1] * n, pads, lhs_dilation=[stride] * n)


def max_pool(x, k, stride, padding=0):
    n = x.ndim - 2
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, *[k] * n), (1, 1, *[stride] * n), [(0, 0)] * 2 + [(padding, padding)] * n)


def avg_pool(x, k, stride, padding=0):
    n = x.ndim - 2
    sums = lax.reduce_window(x, 0.0, lax.add, (1, 1, *[k] * n), (1, 1, *[stride] * n), [(0, 0)] * 2 + [(padding, padding)] * n)
    return sums / k**n


def adaptive_avg_pool(x, size):
    factor = x.shape[-1] // size
    return x.reshape(*x.shape[:2], size, factor, size, factor).mean((3, 5))


def unfold(x, k, padding=0, stride=1):
    patches = lax.conv_general_dilated_patches(x, (k, k), (stride, stride), [(padding, padding)] * 2)
    return patches.reshape(*patches.shape[:2], -1)


def linear(x, w, b):
    return x @ w.T + b


def layer_norm(x, w, b, eps=1e-5):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(var + eps) * w + b


def rms_norm(x, w, eps=1e-6):
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + eps) * w


def normalized(x, axes, eps=1e-5):
    return (x - x.mean(axes, keepdims=True)) * lax.rsqrt(x.var(axes, keepdims=True) + eps)


def batch_norm(x, w, b):
    shape = (1, -1, *[1] * (x.ndim - 2))
    return normalized(x, (0, *range(2, x.ndim))) * w.reshape(shape) + b.reshape(shape)


def group_norm(x, groups, w, b):
    parts = x.reshape(x.shape[0], groups, -1)
    return normalized(parts, (2,)).reshape(x.shape) * w[:, None, None] + b[:, None, None]


def attention(q, k, v, causal=False):
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5
    if causal:
        scores = jnp.where(jnp.tri(*scores.shape[-2:], dtype=bool), scores, -jnp.inf)
    return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores), v)


def cross_entropy(x, t):
    return -jnp.take_along_axis(jax.nn.log_softmax(x), t[:, None], 1).mean()


def resize(x, size, method):
    return jax.image.resize(x, (*x.shape[:2], size, size), method)


def pixel_shuffle(x, r):
    n, c, h, w = x.shape
    return x.reshape(n, c // r**2, r, r, h, w).transpose(0, 1, 4, 2, 5, 3).reshape(n, c // r**2, h * r, w * r)


def lstm(x, w_ih, w_hh, b_ih, b_hh):
    """One layer over x (T, N, I), from zero states."""

    def step(state, x):
        h, c = state
        i, f, g, o = jnp.split(x @ w_ih.T + h @ w_hh.T + b_ih + b_hh, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zero = jnp.zeros((x.shape[1], w_hh.shape[1]), x.dtype)
    return lax.scan(step, (zero, zero), x)[1]


def gru(x, w_ih, w_hh, b_ih, b_hh):
    def step(h, x):
        r, z, n = jnp.split(x @ w_ih.T + b_ih, 3, -1)
        hr, hz, hn = jnp.split(h @ w_hh.T + b_hh, 3, -1)
        r, z = jax.nn.sigmoid(r + hr), jax.nn.sigmoid(z + hz)
        n = jnp.tanh(n + r * hn)
        h = n + z * (h - n)
        return h, h

    return lax.scan(step, jnp.zeros((x.shape[1], w_hh.shape[1]), x.dtype), x)[1]
