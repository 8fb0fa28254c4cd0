"""The stateful transformers: built from modules where the pure ones are from layers, and scanned over modules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .. import layers
from ..core import rng
from ..kernels.stacking import stack
from .containers import ModuleList
from .hooks import everywhere
from .module import Module
from .structure import _UNSEEN as UNSEEN
from .structure import clone


class _Stack:
    """What the twins of the stacks have in place of the pure ones' own."""

    def _configured(self: Any) -> None:
        state = vars(self)
        one, end = (state.pop(name) for name in (self.repeated, "end"))
        one = Module.from_spec(one)
        self.layers = ModuleList([copy.deepcopy(one) for _ in range(self.num_layers)])
        self.norm = None if end is None else Module.from_spec(end)

    def _layers_of(self: Any, s: Any) -> list[Any]:
        return list(self.layers)

    def _copies(self: Any, s: Any) -> tuple[Callable[[Any], Any], Any] | None:
        modules = list(self.layers)
        first = modules[0]
        if not all(_plain(module) and _outline(module) == _outline(first) for module in modules):
            return None
        bound = self._bound
        keys = None if bound is None or not first.training else bound.stream.split(self, bound.path, len(modules))
        own = [_variables(module) for module in modules]
        place = {id(variable): i for i, variable in reversed([*enumerate(own[0])])}

        def bind(at: tuple[list[Any], Any]) -> Module:
            arrays, key = at
            return clone(first, lambda variable: arrays[place[id(variable)]], (rng.KeyStream(key), None))

        return bind, (stack([[jnp.asarray(a) for a in arrays] for arrays in own]), keys)


def _variables(module: Module) -> list[Any]:
    return [v for m in module.modules() for v in m._parameters.values() if v is not None]


def _plain(module: Module) -> bool:
    """Whether no hook runs in a module, and no buffer can be written."""
    busy = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks", "_buffers")
    return not everywhere and not any(vars(m)[name] for m in module.modules() for name in busy)


def _outline(module: Module) -> Any:
    """Everything but array values that a module computes with; equal for modules that compute alike."""
    state = vars(module)
    plain = {name: _frozen(value) for name, value in state.items() if name not in UNSEEN and not name.endswith("_hooks")}
    seen: dict[int, int] = {}
    shapes = [(n, None if v is None else (v.shape, v.dtype, seen.setdefault(id(v), len(seen)))) for n, v in state["_parameters"].items()]
    return type(module), plain, shapes, [(n, None if m is None else _outline(m)) for n, m in state["_modules"].items()]


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple(value.items())
    if isinstance(value, (set, list)):
        return type(value), tuple(value)
    return value if isinstance(value, Hashable) else id(value)


def _configured_block(self: Any) -> None:
    Module._configured(self)
    # It is `activation` from here on, an attribute or a child that may be replaced.
    del vars(self)["act"]


class TransformerEncoderLayer(layers.TransformerEncoderLayer, Module):
    _configured = _configured_block


class TransformerDecoderLayer(layers.TransformerDecoderLayer, Module):
    _configured = _configured_block


class TransformerEncoder(_Stack, layers.TransformerEncoder, Module):
    _configured = _Stack._configured


class TransformerDecoder(_Stack, layers.TransformerDecoder, Module):
    _configured = _Stack._configured


class Transformer(layers.Transformer, Module):
    def _configured(self) -> None:
        Module._configured(self)
        vars(self).update(custom_encoder=None, custom_decoder=None)
        parameters = dict(self.named_parameters())
        with jax.ensure_compile_time_eval():
            drawn = self.redrawn(rng.default_generator.draw(self), {name: p._value for name, p in parameters.items()})
        for name, parameter in parameters.items():
            parameter.data = drawn[name]
