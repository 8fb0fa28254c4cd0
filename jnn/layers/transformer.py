"""Transformers: encoder and decoder layers, stacks of them, and both together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..core import checks, dtypes, rng, tree
from ..core.initial import xavier_uniform
from ..core.spec import Layer, config, layer
from ..core.view import View
from ..kernels.stacking import stack
from .activation import gelu
from .attention import MultiheadAttention
from .container import ModuleList
from .dropout import Dropout
from .linear import Linear
from .normalization import LayerNorm
from .rectifier import relu

Array = jax.Array

# An unrolled stack is compiled layer by layer; from this depth on a scanned one is ready sooner.
_DEEP = 8


def is_part(x: Any) -> bool:
    """Whether ``x`` has parts and state of its own: a pure layer, or a module."""
    return isinstance(x, Layer) or hasattr(x, "named_modules")


def square_subsequent_mask(size: int, dtype: Any = None) -> np.ndarray:
    """The additive causal mask (size, size): -inf above the diagonal."""
    return np.where(np.tri(size, dtype=bool), 0.0, -np.inf).astype(np.float32 if dtype is None else dtype)


def _is_causal(mask: Any, hint: bool | None) -> bool:
    """Whether a mask is the causal one: as hinted, else by its values where they are known."""
    if hint is not None or mask is None:
        return bool(hint)
    known = checks.concrete(mask)
    if known is None or known.ndim != 2 or known.shape[0] != known.shape[1]:
        return False
    causal = ~np.tri(len(known), dtype=bool)
    return bool((known == (causal if known.dtype == bool else np.where(causal, -np.inf, 0.0))).all())


@layer
class _Block(Layer):
    """What encoder and decoder layers share: attention and a feedforward network, with residual connections and norms."""

    d_model: int
    nhead: int
    dim_feedforward: int = 2048
    dropout_rate: float = config(default=0.1, alias="dropout")
    act: Any = config(default=relu, alias="activation")
    layer_norm_eps: float = 1e-5
    batch_first: bool = False
    norm_first: bool = False
    bias: bool = True
    device: Any = None
    dtype: Any = None

    attentions: ClassVar[tuple[str, ...]] = ()

    def validate(self) -> None:
        if isinstance(self.act, str):
            named = {"relu": relu, "gelu": gelu}
            checks.require(self.act in named, self, "activation must be 'relu', 'gelu' or a callable", RuntimeError, activation=self.act)
            self._set(act=named[self.act])
        checks.require(is_part(self.act) or callable(self.act), self, "activation must be callable", TypeError, activation=self.act)
        if not is_part(self.act):
            self._set(activation=self.act)

    def parts(self) -> dict[str, Layer]:
        factory = {"bias": self.bias, "device": self.device, "dtype": self.dtype}
        attention = MultiheadAttention(self.d_model, self.nhead, self.dropout_rate, batch_first=self.batch_first, **factory)
        drop, norm = Dropout(self.dropout_rate), LayerNorm(self.d_model, self.layer_norm_eps, **factory)
        count = len(self.attentions) + 1
        return {
            **dict.fromkeys(self.attentions, attention),
            "linear1": Linear(self.d_model, self.dim_feedforward, **factory),
            "dropout": drop,
            "linear2": Linear(self.dim_feedforward, self.d_model, **factory),
            **{f"norm{i + 1}": norm for i in range(count)},
            **{f"dropout{i + 1}": drop for i in range(count)},
            **({"activation": self.act} if is_part(self.act) else {}),
        }

    def _feedforward(self, s: Any, x: Array) -> Array:
        activate = vars(self).get("activation") or s.activation
        return s.linear2(s.dropout(activate(s.linear1(x))))

    def _residual(self, s: Any, x: Array, *sublayers: Callable[[Array], Array]) -> Array:
        """``x + dropout(f(x))`` for each sublayer f in turn, normalised before f or after the sum."""
        for i, f in enumerate(sublayers, 1):
            norm, drop = getattr(s, f"norm{i}"), getattr(s, f"dropout{i}")
            x = x + drop(f(norm(x))) if self.norm_first else norm(x + drop(f(x)))
        return x


@layer
class TransformerEncoderLayer(_Block):
    """Self-attention and a feedforward network: ``x + dropout(f(x))`` for each of the two, with layer norm.

    Shape: src (S, N, d_model), (N, S, d_model) with ``batch_first``, or (S, d_model); src_mask (S, S) or (N * nhead, S, S);
        src_key_padding_mask (N, S). Output like src. Masks as of :class:`MultiheadAttention`.

    Args:
        d_model: features of input and output.
        nhead: heads of the attention.
        dim_feedforward: features of the hidden layer.
        dropout: probability of dropping, of attention weights, hidden features, and both results.
        activation: ``"relu"``, ``"gelu"``, a function of arrays, or a layer, which then is a child.
        layer_norm_eps: epsilon of the norms.
        batch_first: whether the batch comes before the sequence.
        norm_first: whether to normalise what goes into attention and network, and not the sums.
        bias: whether linear maps and norms have biases.
        device: where the parameters live.
        dtype: of the parameters; float32 when None.

    ``is_causal`` says that ``src_mask`` is the causal mask, which is then not read.

    Differs from torch: there is one path of computation; evaluation takes no other.

    Reference: Vaswani et al., Attention is all you need, 2017; Xiong et al., 2020 (norm_first).
    """

    attentions: ClassVar[tuple[str, ...]] = ("self_attn",)

    def compute(
        self, s: Any, src: Array, src_mask: Array | None = None, src_key_padding_mask: Array | None = None, is_causal: bool = False
    ) -> Array:
        def attend(x: Array) -> Array:
            return s.self_attn(x, x, x, src_key_padding_mask, False, src_mask, is_causal=is_causal)[0]

        return self._residual(s, src, attend, functools.partial(self._feedforward, s))


@layer
class TransformerDecoderLayer(_Block):
    """Self-attention, attention to the encoder's output, and a feedforward network; see :class:`TransformerEncoderLayer`.

    Shape: tgt (T, N, d_model), memory (S, N, d_model), laid out as there; tgt_mask (T, T), memory_mask (T, S); padding masks
        (N, T) and (N, S). Output like tgt.
    """

    attentions: ClassVar[tuple[str, ...]] = ("self_attn", "multihead_attn")

    def compute(
        self,
        s: Any,
        tgt: Array,
        memory: Array,
        tgt_mask: Array | None = None,
        memory_mask: Array | None = None,
        tgt_key_padding_mask: Array | None = None,
        memory_key_padding_mask: Array | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Array:
        def attend(x: Array) -> Array:
            return s.self_attn(x, x, x, tgt_key_padding_mask, False, tgt_mask, is_causal=tgt_is_causal)[0]

        def look(x: Array) -> Array:
            return s.multihead_attn(x, memory, memory, memory_key_padding_mask, False, memory_mask, is_causal=memory_is_causal)[0]

        return self._residual(s, tgt, attend, look, functools.partial(self._feedforward, s))


class _Stack(Layer):
    """Base of the stacks: equal layers one after another, and a norm.

    Subclasses name the field that holds the layer in ``repeated``.
    """

    repeated: ClassVar[str]
    num_layers: int
    end: Any
    scan: bool | None
    remat: bool

    def validate(self) -> None:
        one = getattr(self, self.repeated)
        checks.require(is_part(one), self, f"{self.repeated} must be a layer", TypeError, **{self.repeated: type(one)})
        checks.require(self.end is None or is_part(self.end), self, "norm must be a layer or None", TypeError, norm=type(self.end))
        checks.integer(self, "num_layers", self.num_layers, 0)

    def parts(self) -> Mapping[str, Layer]:
        layers = ModuleList([getattr(self, self.repeated)] * self.num_layers)
        return {"layers": layers} | ({} if self.end is None else {"norm": self.end})

    def _through(self, s: Any, x: Array, call: Callable[[Any, Array], Array]) -> Array:
        """``call(layer, x)`` for each layer in turn, then the norm."""
        x = jnp.asarray(x)
        copies = self._copies(s) if self._wants_scan(s, x) else None
        if self.scan and copies is None:
            checks.fail(self, "layers that differ, write buffers or have hooks cannot be scanned", RuntimeError)
        if copies is None:
            for one in s.layers:
                x = (jax.checkpoint(functools.partial(call, one)) if self.remat else functools.partial(call, one))(x)
        else:
            bind, arrays = copies

            def body(x: Array, at: Any) -> tuple[Array, None]:
                return call(bind(at), x), None

            x, _ = jax.lax.scan(jax.checkpoint(body) if self.remat else body, x, arrays, len(s.layers))
        norm = getattr(s, "norm", None)
        return x if norm is None else norm(x)

    def _wants_scan(self, s: Any, x: Array) -> bool:
        """Automatic only while a program is traced, as it is the program that is to stay small."""
        if self.scan is not None:
            return self.scan and len(s.layers) > 0
        deep = len(s.layers) >= _DEEP and all(isinstance(one, _Block) for one in self._layers_of(s))
        return deep and isinstance(x, Tracer)

    def _layers_of(self, s: Any) -> list[Any]:
        return [getattr(self, self.repeated)]

    def _copies(self, s: Any) -> tuple[Callable[[Any], Any], Any] | None:
        """The layers as arrays with a leading dimension, and what makes a layer of one slice of them."""
        views = list(s.layers)
        if any(tree.flatten(view._buffers) for view in views):
            return None
        first, run = views[0], views[0]._run
        keys = run.stream.split(self, first._path, len(views)) if run.training else None

        def bind(at: tuple[Any, Array | None]) -> View:
            params, key = at
            return View(first._layer, params, {}, run._replace(stream=rng.KeyStream(key)), first._path)

        return bind, (stack([view._params for view in views]), keys)


@layer
class TransformerEncoder(_Stack):
    """Equal encoder layers one after another.

    Shape: as of the layer. ``mask`` and ``src_key_padding_mask`` go to every layer as ``src_mask`` and under their name.

    Args:
        encoder_layer: the layer; a pure one on the pure face; a module on the stateful one, where it is copied num_layers times.
        num_layers: how many.
        norm: a last layer, or None.
        enable_nested_tensor: accepted; changes nothing: XLA has no arrays of ragged shape, and padding is computed and ignored.
        mask_check: accepted; changes nothing, as it serves nested tensors.
        scan: whether the layers run as one scanned layer, so that the time to trace and compile does not grow with their
            number. None: where a program is traced, there are 8 of them at least, and all are alike and without hooks.
        remat: whether the backward pass computes each layer again in place of keeping what is inside it.

    ``is_causal`` None: a mask that is known while tracing is compared with the causal one.

    Differs from torch: ``scan`` and ``remat``. On the pure face the layers are initialised each on its own.
    """

    encoder_layer: Any
    num_layers: int
    end: Any = config(default=None, alias="norm")
    enable_nested_tensor: bool = True
    mask_check: bool = True
    scan: bool | None = None
    remat: bool = False

    repeated: ClassVar[str] = "encoder_layer"

    def compute(
        self, s: Any, src: Array, mask: Array | None = None, src_key_padding_mask: Array | None = None, is_causal: bool | None = None
    ) -> Array:
        causal = _is_causal(mask, is_causal)
        return self._through(s, src, lambda one, x: one(x, src_mask=mask, is_causal=causal, src_key_padding_mask=src_key_padding_mask))


@layer
class TransformerDecoder(_Stack):
    """Equal decoder layers one after another; see :class:`TransformerEncoder` and :class:`TransformerDecoderLayer`.

    Args:
        decoder_layer: the layer.
        num_layers: how many.
        norm: a last layer, or None.
        scan: whether the layers run as one scanned layer.
        remat: whether the backward pass computes each layer again.
    """

    decoder_layer: Any
    num_layers: int
    end: Any = config(default=None, alias="norm")
    scan: bool | None = None
    remat: bool = False

    repeated: ClassVar[str] = "decoder_layer"

    def compute(
        self,
        s: Any,
        tgt: Array,
        memory: Array,
        tgt_mask: Array | None = None,
        memory_mask: Array | None = None,
        tgt_key_padding_mask: Array | None = None,
        memory_key_padding_mask: Array | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Array:
        how = {
            "tgt_mask": tgt_mask,
            "memory_mask": memory_mask,
            "tgt_key_padding_mask": tgt_key_padding_mask,
            "memory_key_padding_mask": memory_key_padding_mask,
            "tgt_is_causal": _is_causal(tgt_mask, tgt_is_causal),
            "memory_is_causal": memory_is_causal,
        }
        return self._through(s, tgt, lambda one, x: one(x, memory, **how))


@layer
class Transformer(Layer):
    """An encoder of src, and a decoder of tgt that attends to what the encoder gives.

    Shape: src (S, N, d_model) and tgt (T, N, d_model), batch first, or without N; masks (S, S), (T, T), (T, S); padding masks (N, S),
        (N, T), (N, S). Output like tgt.

    Args:
        d_model: features.
        nhead: heads of the attentions.
        num_encoder_layers: layers of the encoder.
        num_decoder_layers: layers of the decoder.
        dim_feedforward: features of the hidden layers.
        dropout: probability of dropping.
        activation: ``"relu"``, ``"gelu"``, a function of arrays, or a layer.
        custom_encoder: in place of a :class:`TransformerEncoder`.
        custom_decoder: in place of a :class:`TransformerDecoder`.
        layer_norm_eps: epsilon of the norms.
        batch_first: whether the batch comes before the sequence.
        norm_first: whether layers normalise first.
        bias: whether linear maps and norms have biases.
        device: where the parameters live.
        dtype: of the parameters; float32 when None.

    State: as of the layers; parameters of two dimensions or more are Glorot uniform, those of custom parts too.

    Raises:
        RuntimeError: src and tgt differ in batch size, or have not d_model features.

    Reference: Vaswani et al., Attention is all you need, 2017.
    """

    d_model: int = 512
    nhead: int = 8
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    dim_feedforward: int = 2048
    dropout: float = 0.1
    activation: Any = relu
    custom_encoder: Any = None
    custom_decoder: Any = None
    layer_norm_eps: float = 1e-5
    batch_first: bool = False
    norm_first: bool = False
    bias: bool = True
    device: Any = None
    dtype: Any = None

    def parts(self) -> Mapping[str, Layer]:
        factory = {"bias": self.bias, "device": self.device, "dtype": self.dtype}
        norm = LayerNorm(self.d_model, self.layer_norm_eps, **factory)
        shared = (self.d_model, self.nhead, self.dim_feedforward, self.dropout, self.activation, self.layer_norm_eps)
        how = {"batch_first": self.batch_first, "norm_first": self.norm_first, **factory}
        encoder = self.custom_encoder or TransformerEncoder(TransformerEncoderLayer(*shared, **how), self.num_encoder_layers, norm)
        decoder = self.custom_decoder or TransformerDecoder(TransformerDecoderLayer(*shared, **how), self.num_decoder_layers, norm)
        return {"encoder": encoder, "decoder": decoder}

    def redrawn(self, key: Array, params: Mapping[str, Any]) -> dict[str, Any]:
        def draw(name: str, a: Any) -> Any:
            kept = a.ndim < 2 or isinstance(a, jax.ShapeDtypeStruct)
            return a if kept else xavier_uniform(rng.fold(key, name), a.shape, a.dtype)

        return {name: draw(name, a) for name, a in params.items()}

    @staticmethod
    def generate_square_subsequent_mask(sz: int, device: Any = None, dtype: Any = None) -> Array:
        """The additive causal mask (sz, sz): -inf above the diagonal, else 0."""
        del device
        return jnp.asarray(square_subsequent_mask(sz, dtypes.parameter("generate_square_subsequent_mask", dtype)))

    def compute(
        self,
        s: Any,
        src: Array,
        tgt: Array,
        src_mask: Array | None = None,
        tgt_mask: Array | None = None,
        memory_mask: Array | None = None,
        src_key_padding_mask: Array | None = None,
        tgt_key_padding_mask: Array | None = None,
        memory_key_padding_mask: Array | None = None,
        src_is_causal: bool | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Array:
        batch = 0 if self.batch_first else 1
        shapes = {"src": src.shape, "tgt": tgt.shape}
        checks.rank(self, src, (2, 3), name="src")
        checks.rank(self, tgt, (src.ndim,), name="tgt")
        same = src.ndim == 2 or src.shape[batch] == tgt.shape[batch]
        checks.require(same, self, "src and tgt must have one batch size", RuntimeError, **shapes)
        ok = src.shape[-1] == tgt.shape[-1] == self.d_model
        checks.require(ok, self, "src and tgt must have d_model features", RuntimeError, d_model=self.d_model, **shapes)
        memory = s.encoder(src, mask=src_mask, src_key_padding_mask=src_key_padding_mask, is_causal=src_is_causal)
        return s.decoder(
            tgt,
            memory,
            tgt_mask=tgt_mask,
            memory_mask=memory_mask,
            tgt_key_padding_mask=tgt_key_padding_mask,
            memory_key_padding_mask=memory_key_padding_mask,
            tgt_is_causal=tgt_is_causal,
            memory_is_causal=memory_is_causal,
        )
