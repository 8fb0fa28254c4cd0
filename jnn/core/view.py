"""``View``: what ``compute`` calls ``s`` on the pure path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from . import checks, rng, tree

if TYPE_CHECKING:
    from .spec import Layer


class Start(NamedTuple):
    """What all layers of one ``init`` share."""

    key: jax.Array
    known: dict[str, Layer]  # what lazy layers have become, by path

    def state(self, layer: Layer, path: str) -> tuple[tree.Tree, tree.Tree]:
        """``(params, buffers)`` to run a layer on for its shapes alone."""
        return jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), layer._init(self, path))


class Run(NamedTuple):
    """What all layers of one call share."""

    training: bool
    stream: rng.KeyStream
    start: Start | None = None  # of a call made for the sizes of lazy layers


class View:
    """One layer's place in the two trees: arrays by name, children as callables, writes to buffers kept."""

    __slots__ = ("_buffers", "_layer", "_params", "_path", "_run")

    def __init__(self, layer: Layer, params: Mapping[str, Any], buffers: dict[str, Any], run: Run, path: str) -> None:
        for name, value in zip(("_layer", "_params", "_buffers", "_run", "_path"), (layer, params, buffers, run, path), strict=True):
            object.__setattr__(self, name, value)

    @property
    def training(self) -> bool:
        """Whether this call was made with ``train=True``."""
        return self._run.training

    def __getattr__(self, name: str) -> Any:
        layer = self._layer
        if name in layer.cached_parts:
            path = f"{self._path}.{name}" if self._path else name
            return View(layer.cached_parts[name], self._params.get(name, {}), self._buffers.get(name, {}), self._run, path)
        if name in self._params:
            return self._params[name]
        if name in self._buffers:
            return self._buffers[name]
        if name in layer._state_names:
            return None
        raise AttributeError(f"{type(layer).__name__}: no parameter, buffer or part is called {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._buffers:
            checks.fail(self._layer, "only a buffer that setup has made can be written", AttributeError, name=name)
        self._buffers[name] = value

    def __call__(self, *inputs: Any, **kw: Any) -> Any:
        layer, view = self._layer, self
        if layer.lazy:
            layer, view = self._resolve(layer.resolved(*inputs, **kw))
        with rng.scope(self._run.stream, self._path), jax.named_scope(type(layer).__name__):
            return layer.compute(view, *inputs, **kw)

    def _resolve(self, layer: Layer) -> tuple[Layer, View]:
        """What a lazy layer has become, and a view that has its state."""
        start = self._run.start
        if start is None:
            return layer, self
        layer = start.known.setdefault(self._path, layer)
        return layer, View(layer, *start.state(layer, self._path), self._run, self._path)

    def __iter__(self) -> Iterator[View]:
        return (getattr(self, name) for name in self._layer.cached_parts)

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        return len(self._layer.cached_parts)

    def __getitem__(self, index: int | str) -> View:
        return getattr(self, index if isinstance(index, str) else [*self._layer.cached_parts][index])
