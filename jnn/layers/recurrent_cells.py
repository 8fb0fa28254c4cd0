"""Recurrent cells: one step."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ..core import checks
from ..core.function import function
from ..core.spec import Layer, layer, param
from ..kernels import recurrence as kernel
from .recurrent import uniform_state

Array = jax.Array


@function
def _cell(mode: str, x: Array, *arrays: Any) -> tuple[Array, ...]:
    *state, weight_ih, weight_hh, bias_ih, bias_hh = arrays
    base = kernel.lanes(mode, x, weight_ih, bias_ih, bias_hh)
    return kernel.step(mode, base, tuple(state), weight_hh.T)[0]


@layer
class RNNCellBase(Layer):
    """What :class:`RNNCell`, :class:`LSTMCell` and :class:`GRUCell` share.

    Shape: input (N, input_size) or (input_size,), ``hx`` and output (N, hidden_size) or (hidden_size,). ``hx`` is zeros when None.

    Args:
        input_size: features of the input.
        hidden_size: features of the state.
        bias: whether to add two learned biases.
        num_chunks: how many gates the cell has.
        device: where the parameters live.
        dtype: of the parameters; float32 when None.

    State: ``weight_ih`` (num_chunks * hidden_size, input_size), ``weight_hh`` (num_chunks * hidden_size, hidden_size), ``bias_ih`` and
        ``bias_hh`` (num_chunks * hidden_size,), all U(-b, b), b = 1 / sqrt(hidden_size).

    Raises:
        ValueError: an input or state that is neither 1D nor 2D.
        RuntimeError: an input or state of the wrong size.
    """

    input_size: int
    hidden_size: int
    bias: bool
    num_chunks: int
    device: Any = None
    dtype: Any = None
    weight_ih: Array = param()
    weight_hh: Array = param()
    bias_ih: Array | None = param()
    bias_hh: Array | None = param()

    def validate(self) -> None:
        checks.integer(self, "input_size", self.input_size, 0)
        checks.integer(self, "hidden_size", self.hidden_size, 1)

    def setup(self, key: Array) -> dict[str, Array | None]:
        gates = self.num_chunks * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (gates, self.input_size), "weight_hh": (gates, self.hidden_size)}
        if self.bias:
            return uniform_state(self, key, shapes | {"bias_ih": (gates,), "bias_hh": (gates,)})
        return uniform_state(self, key, shapes) | {"bias_ih": None, "bias_hh": None}

    def _step(self, s: Any, mode: str, input: Array, state: tuple[Array, ...] | None) -> tuple[Array, ...]:
        checks.rank(self, input, (1, 2), ValueError)
        checks.require(
            input.shape[-1] == self.input_size,
            self,
            "the last dimension must be input_size",
            RuntimeError,
            input=input.shape,
            input_size=self.input_size,
        )
        x = jnp.atleast_2d(input)
        if state is None:
            state = (jnp.zeros_like(x, shape=(x.shape[0], self.hidden_size)),) * (2 if mode == "LSTM" else 1)
        for a in state:
            checks.rank(self, a, (1, 2), ValueError, name="hx")
            expected = (*input.shape[:-1], self.hidden_size)
            checks.require(
                jnp.atleast_2d(a).shape == (x.shape[0], self.hidden_size), self, f"hx must have shape {expected}", RuntimeError, hx=a
            )
            checks.same_dtype(self, input=x, hx=a, weight_ih=s.weight_ih)
        new = _cell(mode, x, *map(jnp.atleast_2d, state), s.weight_ih, s.weight_hh, s.bias_ih, s.bias_hh)
        return new if input.ndim == 2 else tuple(a[0] for a in new)

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}" + ("" if self.bias is True else f", bias={self.bias}")


@layer
class RNNCell(RNNCellBase):
    """One step of an :class:`RNN`: ``h' = f(W_ih x + b_ih + W_hh h + b_hh)``; see :class:`RNNCellBase`.

    Args:
        nonlinearity: f, ``"tanh"`` or ``"relu"``.
    """

    nonlinearity: str = "tanh"

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, nonlinearity: str = "tanh", device: Any = None, dtype: Any = None
    ) -> None:
        ok = nonlinearity in ("tanh", "relu")
        checks.require(ok, self, "nonlinearity must be 'tanh' or 'relu'", RuntimeError, nonlinearity=nonlinearity)
        self._set(nonlinearity=nonlinearity)
        super().__init__(input_size, hidden_size, bias, 1, device, dtype)

    def compute(self, s: Any, input: Array, hx: Array | None = None) -> Array:
        return self._step(s, f"RNN_{self.nonlinearity.upper()}", input, None if hx is None else (hx,))[0]

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity}")


@layer
class LSTMCell(RNNCellBase):
    """One step of an :class:`LSTM`: takes and gives (h, c); see :class:`RNNCellBase`."""

    bias: bool = True
    num_chunks: ClassVar[int] = 4

    def compute(self, s: Any, input: Array, hx: tuple[Array, Array] | None = None) -> tuple[Array, Array]:
        ok = hx is None or (isinstance(hx, (tuple, list)) and len(hx) == 2)
        checks.require(ok, self, "hx must be a tuple (h_0, c_0)", RuntimeError, hx=type(hx))
        h, c = self._step(s, "LSTM", input, None if hx is None else tuple(hx))
        return h, c


@layer
class GRUCell(RNNCellBase):
    """One step of a :class:`GRU`; see :class:`RNNCellBase`."""

    bias: bool = True
    num_chunks: ClassVar[int] = 3

    def compute(self, s: Any, input: Array, hx: Array | None = None) -> Array:
        return self._step(s, "GRU", input, None if hx is None else (hx,))[0]
