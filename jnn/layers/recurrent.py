"""Recurrent layers over whole sequences."""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ..core import checks, dtypes
from ..core.spec import Layer, layer
from ..kernels import recurrence as kernel
from .dropout import dropout
from .packed import Layout, PackedSequence

Array = jax.Array
State = tuple[Array, ...]


def require_bool(who: object, name: str, value: object) -> None:
    """Refuse a ``value`` that is not a bool."""
    checks.require(isinstance(value, bool), who, f"{name} must be a bool", TypeError, **{name: value})


def uniform_state(who: Any, key: Array, shapes: dict[str, tuple[int, ...]]) -> dict[str, Array | None]:
    """Parameters from U(-b, b), b = 1 / sqrt(hidden_size)."""
    bound, dtype = 1 / math.sqrt(who.hidden_size), dtypes.parameter(who, who.dtype)
    keys = jax.random.split(key, len(shapes))
    return {name: jax.random.uniform(k, shape, dtype, -bound, bound) for k, (name, shape) in zip(keys, shapes.items(), strict=True)}


@layer
class RNNBase(Layer):
    """What :class:`RNN`, :class:`LSTM` and :class:`GRU` share: stacked recurrent layers, in one direction or both.

    Each layer and direction is one ``lax.scan``, whose compile time does not depend on the length of the sequence; the
    input's share of all steps is one matmul before it.

    Shape: input (T, N, input_size), or (N, T, input_size) with ``batch_first``, or (T, input_size); or a PackedSequence.
        ``hx`` (D * num_layers, N, P) or (D * num_layers, P), with D = 2 when bidirectional, else 1, and P = ``proj_size`` or else
        ``hidden_size``. Output (T, N, D * P), laid out as the input, and the final state, like ``hx``.

    Args:
        mode: ``"RNN_TANH"``, ``"RNN_RELU"``, ``"LSTM"`` or ``"GRU"``.
        input_size: features of the input.
        hidden_size: features of the state.
        num_layers: layers stacked on each other.
        bias: whether to add two learned biases, ``bias_ih`` and ``bias_hh``.
        batch_first: whether the batch comes before time, in input and output but not in the states.
        dropout: probability of dropping an element of the output of each layer but the last, in training.
        bidirectional: whether a second set of layers reads backwards; the outputs are concatenated.
        proj_size: when positive, the size to which an LSTM projects its hidden state.
        device: where the parameters live.
        dtype: of the parameters; float32 when None.

    State: for each layer k, and again with suffix ``_reverse``: ``weight_ih_l{k}`` (G, input), ``weight_hh_l{k}`` (G, P),
        ``bias_ih_l{k}`` and ``bias_hh_l{k}`` (G,), ``weight_hr_l{k}`` (proj_size, hidden_size), with G = gates * hidden_size; all
        U(-b, b), b = 1 / sqrt(hidden_size).

    Raises:
        ValueError: sizes out of range, an input that is neither 2D nor 3D, or of another dtype than the weights.
        RuntimeError: an input or ``hx`` of the wrong size.

    Differs from torch: ``lengths`` (N,), the number of steps of each sequence of a padded batch, gives the outputs and final states
        that packing would give, with zeros after the end. Lengths are then data that a compiled step can take, of any
        order; this is the way to train on sequences of different lengths.
    """

    mode: str
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False
    proj_size: int = 0
    device: Any = None
    dtype: Any = None

    def validate(self) -> None:
        checks.choice(self, "mode", self.mode, kernel.CELLS)
        ok = isinstance(self.dropout, (int, float)) and not isinstance(self.dropout, bool) and 0 <= self.dropout <= 1
        checks.require(ok, self, "dropout must be a number in [0, 1]", dropout=self.dropout)
        if self.dropout > 0 and self.num_layers == 1:
            warnings.warn(f"{type(self).__name__}: dropout acts between layers, and there is one layer", stacklevel=4)
        require_bool(self, "bias", self.bias)
        require_bool(self, "batch_first", self.batch_first)
        for name in ("input_size", "hidden_size", "num_layers"):
            checks.integer(self, name, getattr(self, name), 1)
        checks.integer(self, "proj_size", self.proj_size, 0)
        checks.require(
            self.proj_size < self.hidden_size,
            self,
            "proj_size must be below hidden_size",
            proj_size=self.proj_size,
            hidden_size=self.hidden_size,
        )
        checks.require(self.proj_size == 0 or self.mode == "LSTM", self, "only an LSTM takes proj_size", proj_size=self.proj_size)
        self._set(dropout=float(self.dropout))

    @property
    def _suffixes(self) -> tuple[str, ...]:
        return ("", "_reverse") if self.bidirectional else ("",)

    def weight_names(self) -> list[list[str]]:
        """The names of the parameters, a list for each layer and direction."""
        kinds = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if self.bias else []), *(["weight_hr"] if self.proj_size else [])]
        return [[f"{kind}_l{k}{suffix}" for kind in kinds] for k in range(self.num_layers) for suffix in self._suffixes]

    def setup(self, key: Array) -> dict[str, Array | None]:
        gates, size = kernel.CELLS[self.mode].gates * self.hidden_size, self.proj_size or self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {}
        for i, names in enumerate(self.weight_names()):
            first = i < len(self._suffixes)
            width = self.input_size if first else size * len(self._suffixes)
            by_kind = {"ih": (gates, width), "hh": (gates, size), "hr": (self.proj_size, self.hidden_size)}
            shapes |= {name: (gates,) if name.startswith("bias") else by_kind[name.split("_")[1]] for name in names}
        return uniform_state(self, key, shapes)

    def compute(self, s: Any, input: Any, hx: Any = None, *, lengths: Any = None) -> Any:
        if isinstance(input, PackedSequence):
            checks.require(lengths is None, self, "a packed sequence has its own lengths", TypeError)
            return self._packed(s, input, hx)
        checks.rank(self, input, (2, 3), ValueError)
        batched = input.ndim == 3
        if not batched:
            input = input[None] if self.batch_first else input[:, None]
        x = input.swapaxes(0, 1) if self.batch_first else input
        state = self._initial(x, hx, batched)
        y, state = self._stack(s, x, state, self._valid(x, lengths, batched))
        y = y.swapaxes(0, 1) if self.batch_first else y
        if not batched:
            y, state = y[0] if self.batch_first else y[:, 0], tuple(a[:, 0] for a in state)
        return y, self._given_form(state)

    def _packed(self, s: Any, input: PackedSequence, hx: Any) -> Any:
        data, _, order, inverse = input
        checks.rank(self, data, (2,), name="input.data")
        states = hx if isinstance(hx, (tuple, list)) else (hx,)
        layout = Layout.of(self, input, None if hx is None else states[0].shape[1])
        x = layout.pad(data)
        state = self._initial(x, hx, True)
        if order is not None and state is not None:
            state = tuple(a[:, order] for a in state)
        y, state = self._stack(s, x, state, layout.valid)
        if inverse is not None:
            state = tuple(a[:, inverse] for a in state)
        return PackedSequence(layout.pack(y, data.shape[0]), input.batch_sizes, order, inverse), self._given_form(state)

    def _given_form(self, state: State) -> Any:
        return state if self.mode == "LSTM" else state[0]

    def _initial(self, x: Array, hx: Any, batched: bool) -> State | None:
        """``hx`` as a tuple of arrays with a batch axis, checked."""
        if hx is None:
            return None
        lstm = self.mode == "LSTM"
        if lstm:
            ok = isinstance(hx, (tuple, list)) and len(hx) == 2
            checks.require(ok, self, "hx must be a tuple (h_0, c_0)", RuntimeError, hx=type(hx))
        state = tuple(map(jnp.asarray, hx if lstm else (hx,)))
        for a in state:
            checks.rank(self, a, (3 if batched else 2,), name="hx")
        state = state if batched else tuple(a[:, None] for a in state)
        for name, a, size in zip(("hx[0]", "hx[1]") if lstm else ("hx",), state, (self.proj_size or self.hidden_size, self.hidden_size)):
            expected = (self.num_layers * len(self._suffixes), x.shape[1], size)
            checks.require(
                a.shape == expected,
                self,
                f"{name} must have shape {expected}",
                RuntimeError,
                **{f"{name.replace('[', '').replace(']', '')}": a},
            )
        checks.same_dtype(self, input=x, **{f"hx{i}": a for i, a in enumerate(state)})
        return state

    def _valid(self, x: Array, lengths: Any, batched: bool) -> Array | None:
        if lengths is None:
            return None
        lengths = jnp.asarray(lengths)
        lengths = lengths if batched else lengths.reshape((1,))
        n = x.shape[1]
        checks.require(lengths.shape == (n,), self, f"lengths must have shape ({n},)", RuntimeError, lengths=lengths)
        checks.index_range(self, "lengths", lengths, x.shape[0] + 1, exc=RuntimeError)
        return jnp.arange(x.shape[0])[:, None] < lengths[None]

    def _stack(self, s: Any, x: Array, state: State | None, valid: Any) -> tuple[Array, State]:
        """All layers over a batch (T, N, input_size)."""
        checks.require(x.shape[0] > 0, self, "the sequence must have at least one step", RuntimeError, shape=x.shape)
        checks.require(
            x.shape[-1] == self.input_size,
            self,
            "the last dimension must be input_size",
            RuntimeError,
            input=x.shape[-1],
            input_size=self.input_size,
        )
        dtype = s.weight_ih_l0.dtype
        checks.require(x.dtype == dtype, self, "input must have the dtype of the weights", ValueError, input=x.dtype, weight=dtype)
        if valid is not None:
            # What stands in the padding, were it NaN, reaches no gradient.
            x = jnp.where(valid[..., None], x, 0)
        finals: list[State] = []
        for k in range(self.num_layers):
            outputs = []
            for suffix in self._suffixes:
                first = None if state is None else tuple(a[len(finals)] for a in state)
                y, final = self._direction(s, f"_l{k}{suffix}", x, first, valid)
                outputs.append(y)
                finals.append(final)
            x = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, -1)
            if self.dropout and s.training and k < self.num_layers - 1:
                x = dropout(x, self.dropout)
        return x, tuple(map(jnp.stack, zip(*finals, strict=True)))

    def _direction(self, s: Any, at: str, x: Array, state: State | None, valid: Any) -> tuple[Array, State]:
        """One layer in one direction."""
        names = [f"{kind}_{of}{at}" for kind in (("weight", "bias") if self.bias else ("weight",)) for of in ("ih", "hh")]
        weights = [jnp.asarray(getattr(s, name)) for name in names]
        # Zeros made from the input vary over the mesh as it does, which shard_map asks of a loop's state.
        zero = jnp.zeros_like(x[0, :, :1])
        sizes = (self.proj_size or self.hidden_size, *((self.hidden_size,) if self.mode == "LSTM" else ()))
        zeros = tuple(jnp.broadcast_to(zero, (x.shape[1], size)) for size in sizes)
        start = zeros if state is None else tuple(a + b for a, b in zip(state, zeros, strict=True))
        biases = (weights[2], weights[3]) if self.bias else None
        projection = jnp.asarray(getattr(s, f"weight_hr{at}")) if self.proj_size else None
        return kernel.recurrence(self.mode, x, (weights[0], weights[1]), biases, start, projection, valid, reverse=at.endswith("_reverse"))

    def extra_repr(self) -> str:
        shown = [str(self.input_size), str(self.hidden_size)]
        plain = {"proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0, "bidirectional": False}
        return ", ".join(shown + [f"{name}={getattr(self, name)}" for name, usual in plain.items() if getattr(self, name) != usual])


@layer
class RNN(RNNBase):
    """Elman's network: ``h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)``; see :class:`RNNBase`.

    Args:
        nonlinearity: f, ``"tanh"`` or ``"relu"``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        checks.choice(self, "nonlinearity", nonlinearity, ("tanh", "relu"))
        mode = f"RNN_{nonlinearity.upper()}"
        super().__init__(mode, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype)

    @property
    def nonlinearity(self) -> str:
        """f, ``"tanh"`` or ``"relu"``."""
        return self.mode.removeprefix("RNN_").lower()


@layer
class LSTM(RNNBase):
    """Long short-term memory; see :class:`RNNBase`.

    ``i, f, g, o`` are the four parts of ``W_ih x_t + b_ih + W_hh h_{t-1} + b_hh``, of which g goes through tanh and the others
    through the logistic function; ``c_t = f c_{t-1} + i g``, ``h_t = o tanh(c_t)``; with ``proj_size``, ``h_t = W_hr (o tanh(c_t))``.

    Shape: ``hx`` and the final state are tuples (h, c), with h (D * num_layers, N, P) and c (D * num_layers, N, hidden_size).

    Reference: Hochreiter and Schmidhuber, Long short-term memory, 1997; Sak, Senior and Beaufays, 2014 (projections).
    """

    mode: ClassVar[str] = "LSTM"


@layer
class GRU(RNNBase):
    """Gated recurrent unit; see :class:`RNNBase`.

    ``r = s(W_ir x_t + b_ir + W_hr h_{t-1} + b_hr)``, z likewise, ``n = tanh(W_in x_t + b_in + r (W_hn h_{t-1} + b_hn))``,
    ``h_t = (1 - z) n + z h_{t-1}``, with s the logistic function.

    Reference: Cho et al., Learning phrase representations using RNN encoder-decoder, 2014.
    """

    mode: ClassVar[str] = "GRU"
