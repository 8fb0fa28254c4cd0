"""Recurrent layers as one loop over time: the input's share of the gates comes ready, in one matmul for all steps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .foreign import differentiable, foreign, gradient
from .varying import alike

Array = jax.Array
State = tuple[Array, ...]


class Cell(NamedTuple):
    """A recurrent cell, as an elementwise function of lanes of the hidden size.

    ``act(*lanes, last)`` gives ``(y,)`` or ``(y, c)``, where ``last`` is the last array of the state. The lanes of a step are
    the input's share plus ``spread`` of the state's share of the gates.
    """

    gates: int
    act: Callable[..., State]
    recalls: bool
    spread: Callable[[Array], Array] = lambda u: u


def _lstm(i: Array, f: Array, g: Array, o: Array, c: Array) -> State:
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _gru(r: Array, z: Array, n: Array, u: Array, h: Array) -> State:
    n = jnp.tanh(n + jax.nn.sigmoid(r) * u)
    return (n + jax.nn.sigmoid(z) * (h - n),)


def _gru_spread(u: Array) -> Array:
    """The state's shares of r, z and n as those of the lanes r, z, n, u: the reset gate acts on the last alone."""
    r, z, n = jnp.split(u, 3, -1)
    return jnp.concatenate([r, z, jnp.zeros_like(n), n], -1)


CELLS = {
    "RNN_TANH": Cell(1, lambda a, h: (jnp.tanh(a),), False),
    "RNN_RELU": Cell(1, lambda a, h: (jax.nn.relu(a),), False),
    "LSTM": Cell(4, _lstm, True),
    "GRU": Cell(3, _gru, True, _gru_spread),
}


def lanes(mode: str, x: Array, weight: Array, bias: Array | None, bias_hh: Array | None) -> Array:
    """The input's share of the lanes, and all biases, for every step at once."""
    y = x @ weight.T
    if mode == "GRU":
        r, z, n = jnp.split(y, 3, -1)
        y = jnp.concatenate([r, z, n, jnp.zeros_like(n)], -1)
        if bias is not None and bias_hh is not None:
            r, z, n = jnp.split(bias, 3)
            bias, bias_hh = jnp.concatenate([r, z, n, jnp.zeros_like(n)]), _gru_spread(bias_hh)
    return y if bias is None or bias_hh is None else y + jnp.broadcast_to(bias + bias_hh, y.shape)


def step(mode: str, base: Array, state: State, weight: Array, projection: Array | None = None) -> tuple[State, Array]:
    """One step of a cell: the new state, and the lanes it came from. ``weight`` is (hidden, gates)."""
    cell = CELLS[mode]
    a = base + cell.spread(state[0] @ weight)
    y, *rest = cell.act(*_split(a, state), state[-1])
    return (y if projection is None else y @ projection, *rest), a


def _split(a: Array, state: State) -> list[Array]:
    # With a projection, the last of an LSTM's state has the hidden size and the first has not.
    return jnp.split(a, a.shape[-1] // state[-1].shape[-1], -1)


def _keep(valid: Array | None, new: State, old: State) -> State:
    return new if valid is None else tuple(jnp.where(valid, n, o) for n, o in zip(new, old, strict=True))


def _unroll(base: Array, most: int) -> int:
    """Steps per turn of the loop: its overhead counts on the CPU; elsewhere the compiler is better left alone."""
    return max(1, min(most, base.shape[0]))


def _scan(
    mode: str, reverse: bool, record: bool, base: Array, state: State, weight: Array, projection: Array | None, valid: Array | None
) -> tuple[State, tuple[State, Any]]:
    """The final state, and by step the state (or, unless ``record``, its first array alone) and the lanes."""

    def body(state: State, at: tuple[Array, Array | None]) -> tuple[State, tuple[State, Any]]:
        base, valid = at
        new, a = step(mode, base, state, weight, projection)
        new = _keep(valid, new, state)
        return new, ((new, a) if record else (new[:1], None))

    return lax.scan(body, state, (base, valid), reverse=reverse, unroll=_unroll(base, 4 if record else 8))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _run(
    mode: str, reverse: bool, base: Array, state: State, weight: Array, projection: Array | None, valid: Array | None
) -> tuple[Array, State]:
    final, ((hs, *_), _) = _scan(mode, reverse, False, base, state, weight, projection, valid)
    return hs, final


@_run.defjvp
def _run_jvp(mode: str, reverse: bool, primals: tuple, tangents: tuple) -> tuple[tuple[Array, State], tuple[Array, State]]:
    """The tangent as a loop that is linear in lanes and state alone.

    The share of the weights' tangents stands before the loop, so that its transpose, the weights' gradient, is one matmul
    over all steps after the backward loop instead of an outer product added up in every step.
    """
    base, state, weight, projection, valid = primals
    d_base, d_state, d_weight, d_projection, _ = tangents
    cell = CELLS[mode]
    final, (states, a) = _scan(mode, reverse, True, base, state, weight, projection, valid)
    before = tuple(_shift(s0, s, reverse) for s0, s in zip(state, states, strict=True))
    inputs = [*_split(a, before), before[-1]]
    slopes = [_slopes(cell.act, inputs, j) for j in range(len(inputs) if cell.recalls else len(inputs) - 1)]
    d_lanes = d_base + cell.spread(before[0] @ d_weight)
    d_hidden = None if projection is None else cell.act(*inputs)[0] @ d_projection

    def body(d_state: State, at: tuple) -> tuple[State, Array]:
        d_lanes, d_hidden, slopes, valid = at
        d_a = d_lanes + cell.spread(d_state[0] @ weight)
        d_inputs = [*_split(d_a, d_state), d_state[-1]]
        d_y, *d_rest = (
            functools.reduce(jnp.add, (s * d for s, d in zip(column, d_inputs, strict=False) if s is not None))
            for column in zip(*slopes, strict=True)
        )
        d_h = d_y if projection is None else d_y @ projection + d_hidden
        d_new = _keep(valid, (d_h, *d_rest), d_state)
        return d_new, d_new[0]

    d_final, d_hs = lax.scan(body, d_state, (d_lanes, d_hidden, slopes, valid), reverse=reverse, unroll=_unroll(base, 4))
    return (states[0], final), (d_hs, d_final)


def _shift(first: Array, states: Array, reverse: bool) -> Array:
    """The state before each step, from the state after each."""
    parts = [states[1:], first[None]] if reverse else [first[None], states[:-1]]
    return jnp.concatenate(parts)


def _slopes(act: Callable[..., State], inputs: list[Array], j: int) -> State:
    """The elementwise derivatives of what ``act`` gives by its ``j``-th input."""
    x = inputs[j]
    return jax.jvp(lambda v: act(*inputs[:j], v, *inputs[j + 1 :]), (x,), (jnp.ones_like(x),))[1]


class _Form(NamedTuple):
    """What of a layer is no array, and which arrays there are: x, the weights of input and state, h, and in this order what there is of
    c, the biases of both, the projection and what is valid, as ones."""

    mode: str
    reverse: bool
    biased: bool
    projected: bool
    masked: bool

    def named(self, arrays: State) -> dict[str, Any]:
        rest = iter(arrays[4:])
        there = {"c": self.outputs == 3, "bias": self.biased, "bias_hh": self.biased, "projection": self.projected, "valid": self.masked}
        names = ("x", "weight", "weight_hh", "h")
        return dict(zip(names, arrays[:4], strict=True)) | {name: next(rest) if ok else None for name, ok in there.items()}

    @property
    def outputs(self) -> int:
        return 3 if self.mode == "LSTM" else 2

    @property
    def arrays(self) -> int:
        return 2 + self.outputs + 2 * self.biased + self.projected + self.masked


class _Wanted(NamedTuple):
    """Which gradients of a layer are asked for."""

    form: _Form
    wants_input: bool
    wants_weights: bool


def _operands(form: _Form, arrays: State) -> tuple[Any, ...]:
    """What the loop takes: the lanes, the state, the state's weight, the projection and what is valid."""
    a = form.named(alike(*arrays))
    state = (a["h"],) if a["c"] is None else (a["h"], a["c"])
    valid = None if a["valid"] is None else a["valid"][..., None] != 0
    base = lanes(form.mode, a["x"], a["weight"], a["bias"], a["bias_hh"])
    return base, state, a["weight_hh"].T, None if a["projection"] is None else a["projection"].T, valid


def _layer(form: _Form, *arrays: Array) -> State:
    """The outputs and the final state."""
    operands = _operands(form, arrays)
    hs, final = _run(form.mode, form.reverse, *operands)
    return _zeroed(operands[-1], hs), *final


def _recorded(form: _Form, *arrays: Array) -> State:
    """What :func:`_layer` gives, and by step the state where the output is not that, the lanes of gates, and an LSTM's memory."""
    operands = _operands(form, arrays)
    valid = operands[-1]
    final, (states, drive) = _scan(form.mode, form.reverse, True, *operands)
    kept = tuple(_zeroed(valid, x) for x in _functions(form.mode, drive))
    return _zeroed(valid, states[0]), *final, *(() if valid is None else states[:1]), *kept, *states[1:]


def _zeroed(valid: Array | None, x: Array) -> Array:
    return x if valid is None else jnp.where(valid, x, 0)


def _functions(mode: str, drive: Array) -> State:
    """The lanes after their functions. Of cells with one gate that is the state."""
    if CELLS[mode].gates == 1:
        return ()
    a, b, c, d = jnp.split(drive, 4, -1)
    a, b = jax.nn.sigmoid(a), jax.nn.sigmoid(b)
    parts = (a, b, jnp.tanh(c), jax.nn.sigmoid(d)) if mode == "LSTM" else (a, b, jnp.tanh(c + a * d), d)
    return (jnp.concatenate(parts, -1),)


def _gradients(wanted: _Wanted, *arrays: Array) -> State:
    """The gradients by a layer's arrays but what is valid, of cotangents, what was recorded, and the arrays."""
    form, cut = wanted.form, len(arrays) - wanted.form.arrays
    cotangents, residuals = arrays[: form.outputs], arrays[form.outputs : cut]
    found = gradient(_layer)(form, cotangents, residuals, arrays[cut:])
    return found[:-1] if form.masked else found


def _attributes(form: _Form, **others: bool) -> dict[str, Any]:
    return form._asdict() | {"mode": np.int64([*CELLS].index(form.mode))} | others


_value = foreign("jnn_recurrence", _layer, lambda form: _attributes(form, record=False))
_record = foreign("jnn_recurrence", _recorded, lambda form: _attributes(form, record=True))
_gradient = foreign(
    "jnn_recurrence_gradient",
    _gradients,
    lambda wanted: _attributes(wanted.form, wants_input=wanted.wants_input, wants_weights=wanted.wants_weights),
)


def _forward(form: _Form, *arrays: Array) -> tuple[State, State]:
    found = _record(form, *arrays)
    outputs, kept = found[: form.outputs], found[form.outputs :]
    return outputs, kept if form.masked else (outputs[0], *kept)


def _backward(form: _Form, cotangents: State, residuals: State, arrays: State, wanted: tuple[bool, ...]) -> State:
    found = _gradient(_Wanted(form, wanted[0], any(wanted[1:])), *cotangents, *residuals, *arrays)
    return (*found, jnp.zeros_like(arrays[-1])) if form.masked else found


_by_library = differentiable(_layer, _forward, _backward, _value)


@functools.partial(jax.jit, static_argnames=("mode", "reverse"))
def recurrence(
    mode: str,
    x: Array,
    weights: tuple[Array, Array],
    biases: tuple[Array, Array] | None,
    state: State,
    projection: Array | None,
    valid: Array | None,
    reverse: bool,
) -> tuple[Array, State]:
    """The outputs (T, N, H) and final state of a recurrent layer in one direction.

    Args:
        mode: a key of ``CELLS``.
        x: the input, (T, N, I).
        weights: (gates, I), of the input, and (gates, H), of the state.
        biases: (gates,) of both, or None.
        state: the initial state, (N, H) each.
        projection: (P, H) or None, an LSTM's ``weight_hr``.
        valid: (T, N) or None. Where it is False the state stays as it is and the output is 0.
        reverse: whether time runs backwards.
    """
    form = _Form(mode, reverse, biases is not None, projection is not None, valid is not None)
    rest = (
        *state[1:],
        *(biases or ()),
        *(() if projection is None else (projection,)),
        *(() if valid is None else (valid.astype(x.dtype),)),
    )
    y, *final = _by_library(form, x, *weights, state[0], *rest)
    return y, tuple(final)
