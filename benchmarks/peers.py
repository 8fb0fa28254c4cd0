"""The same operations by equinox and flax, each in the layout that it is made for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np

KEY = jax.random.key(0)


def same(x: Any) -> Any:
    return x


class Peer(NamedTuple):
    """``run`` on arrays that ``prepare`` makes of torch's outside the clock; ``restore`` gives its output torch's layout."""

    run: Callable[..., Any]
    prepare: Callable[..., Sequence[np.ndarray]] = lambda *arrays: arrays
    restore: Callable[[Any], Any] = same


def _last(x: np.ndarray) -> np.ndarray:
    """Channels last."""
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def _first(x: Any) -> np.ndarray:
    return np.moveaxis(np.asarray(x), -1, 1)


def _eqx(layer: Any, **arrays: Any) -> Any:
    """``layer`` with these arrays for its own."""
    return eqx.tree_at(lambda empty: [getattr(empty, name) for name in arrays], layer, list(arrays.values()))


def conv(x: tuple[int, ...], w: tuple[int, ...], stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1) -> dict[str, Peer]:
    n = len(x) - 2
    layer = eqx.nn.Conv(n, x[1], w[0], w[2], stride, padding, dilation, groups, use_bias=False, key=KEY)
    pads = [(padding, padding)] * n
    module = linen.Conv(w[0], w[2:], stride, pads, kernel_dilation=dilation, feature_group_count=groups, use_bias=False)

    def kernel(w: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.transpose(w, (*range(2, n + 2), 1, 0)))

    return {
        "equinox": Peer(lambda x, w: jax.vmap(_eqx(layer, weight=w))(x)),
        "flax": Peer(lambda x, w: module.apply({"params": {"kernel": w}}, x), lambda x, w: (_last(x), kernel(w)), _first),
    }


def conv_transpose(x: tuple[int, ...], w: tuple[int, ...], stride: int = 1, padding: int = 0) -> dict[str, Peer]:
    n = len(x) - 2
    layer = eqx.nn.ConvTranspose(n, x[1], w[1], w[2], stride, padding, use_bias=False, key=KEY)
    pads = [(w[2] - 1 - padding,) * 2] * n
    module = linen.ConvTranspose(w[1], w[2:], (stride,) * n, pads, use_bias=False)
    spatial = tuple(range(2, n + 2))

    def for_equinox(x: np.ndarray, w: np.ndarray) -> Sequence[np.ndarray]:
        return x, np.flip(w, spatial).swapaxes(0, 1).copy()

    def for_flax(x: np.ndarray, w: np.ndarray) -> Sequence[np.ndarray]:
        return _last(x), np.transpose(np.flip(w, spatial), (*spatial, 0, 1)).copy()

    return {
        "equinox": Peer(lambda x, w: jax.vmap(_eqx(layer, weight=w))(x), for_equinox),
        "flax": Peer(lambda x, w: module.apply({"params": {"kernel": w}}, x), for_flax, _first),
    }


def pool(kind: str, n: int, size: int, stride: int, padding: int = 0) -> dict[str, Peer]:
    layer = getattr(eqx.nn, f"{kind.title()}Pool{n}d")(size, stride, padding)
    call = getattr(linen, f"{kind}_pool")
    return {
        "equinox": Peer(lambda x: jax.vmap(layer)(x)),
        "flax": Peer(lambda x: call(x, (size,) * n, (stride,) * n, [(padding, padding)] * n), lambda x: (_last(x),), _first),
    }


def linear(inputs: int, outputs: int) -> dict[str, Peer]:
    layer, module = eqx.nn.Linear(inputs, outputs, key=KEY), linen.Dense(outputs)

    def mapped(x: Any, w: Any, b: Any) -> Any:
        call: Any = _eqx(layer, weight=w, bias=b)
        for _ in x.shape[:-1]:
            call = jax.vmap(call)
        return call(x)

    return {
        "equinox": Peer(mapped),
        "flax": Peer(lambda x, w, b: module.apply({"params": {"kernel": w, "bias": b}}, x), lambda x, w, b: (x, w.T.copy(), b)),
    }


def layer_norm(size: int) -> dict[str, Peer]:
    layer, module = eqx.nn.LayerNorm(size), linen.LayerNorm(epsilon=1e-5)
    return {
        "equinox": Peer(lambda x, w, b: jax.vmap(_eqx(layer, weight=w, bias=b))(x)),
        "flax": Peer(lambda x, w, b: module.apply({"params": {"scale": w, "bias": b}}, x)),
    }


def rms_norm(size: int) -> dict[str, Peer]:
    layer, module = eqx.nn.RMSNorm(size, eps=1e-6, use_bias=False), linen.RMSNorm(epsilon=1e-6)
    return {
        "equinox": Peer(lambda x, w: jax.vmap(_eqx(layer, weight=w))(x)),
        "flax": Peer(lambda x, w: module.apply({"params": {"scale": w}}, x)),
    }


def group_norm(groups: int, channels: int) -> dict[str, Peer]:
    layer, module = eqx.nn.GroupNorm(groups, channels), linen.GroupNorm(groups, epsilon=1e-5)
    return {
        "equinox": Peer(lambda x, w, b: jax.vmap(_eqx(layer, weight=w, bias=b))(x)),
        "flax": Peer(lambda x, w, b: module.apply({"params": {"scale": w, "bias": b}}, x), lambda x, w, b: (_last(x), w, b), _first),
    }


def batch_norm() -> dict[str, Peer]:
    module = linen.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5)

    def run(x: Any, w: Any, b: Any) -> Any:
        statistics = {"mean": jnp.zeros_like(w), "var": jnp.ones_like(w)}
        return module.apply({"params": {"scale": w, "bias": b}, "batch_stats": statistics}, x, mutable=["batch_stats"])[0]

    return {"flax": Peer(run, lambda x, w, b: (_last(x), w, b), _first)}


def embedding(rows: int, size: int) -> dict[str, Peer]:
    layer, module = eqx.nn.Embedding(rows, size, key=KEY), linen.Embed(rows, size)

    return {
        "equinox": Peer(lambda t, w: jax.vmap(jax.vmap(_eqx(layer, weight=w)))(t)),
        "flax": Peer(lambda t, w: module.apply({"params": {"embedding": w}}, t)),
    }


def attention(causal: bool = False) -> dict[str, Peer]:
    def heads_inside(*arrays: np.ndarray) -> Sequence[np.ndarray]:
        return [a.swapaxes(1, 2).copy() for a in arrays]

    def run(q: Any, k: Any, v: Any) -> Any:
        mask = jnp.tri(q.shape[1], k.shape[1], dtype=bool)[None, None] if causal else None
        return linen.dot_product_attention(q, k, v, mask=mask)

    return {"flax": Peer(run, heads_inside, lambda y: np.swapaxes(y, 1, 2))}


def lstm(size: int) -> dict[str, Peer]:
    """Equinox's cell in a scan, for all of a batch; flax's gates are eight arrays, and its bias one."""
    cell = eqx.nn.LSTMCell(size, size, key=KEY)

    def run(x: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> Any:
        filled = jax.vmap(_eqx(cell, weight_ih=w_ih, weight_hh=w_hh, bias=b_ih + b_hh))

        def step(state: Any, x: Any) -> Any:
            state = filled(x, state)
            return state, state[0]

        zero = jnp.zeros((x.shape[1], size), x.dtype)
        return jax.lax.scan(step, (zero, zero), x)[1]

    module = linen.RNN(linen.OptimizedLSTMCell(size), time_major=True)

    def by_gate(x: np.ndarray, w_ih: np.ndarray, w_hh: np.ndarray, b_ih: np.ndarray, b_hh: np.ndarray) -> Sequence[np.ndarray]:
        return [x, *(w.T.copy() for w in np.split(w_ih, 4)), *(w.T.copy() for w in np.split(w_hh, 4)), *np.split(b_ih + b_hh, 4)]

    def of_gates(x: Any, *arrays: Any) -> Any:
        inputs, states, biases = arrays[:4], arrays[4:8], arrays[8:]
        params = {f"i{gate}": {"kernel": w} for gate, w in zip("ifgo", inputs)}
        params |= {f"h{gate}": {"kernel": w, "bias": b} for gate, w, b in zip("ifgo", states, biases)}
        return module.apply({"params": {"cell": params}}, x)

    return {"equinox": Peer(run), "flax": Peer(of_gates, by_gate)}
