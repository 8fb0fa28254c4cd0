"""``Layer``: what a layer is and how it computes, apart from where its numbers live."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from . import checks, rng, tree
from .view import Run, Start, View

T = TypeVar("T")
Array = jax.Array
ArrayLike = jax.Array | np.ndarray


class Constant:
    """An array among a layer's configuration, equal and hashed by content so that the layer stays hashable."""

    def __init__(self, value: Any) -> None:
        self.value = value

    @functools.cached_property
    def _identity(self) -> tuple[object, ...]:
        if isinstance(self.value, Tracer):
            return (id(self.value),)
        value = np.asarray(self.value)
        return value.shape, value.dtype, value.tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constant) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __repr__(self) -> str:
        return f"{self.value.dtype}{list(self.value.shape)}"


def config(*, default: Any = dataclasses.MISSING, alias: str | None = None) -> Any:
    """A configuration field whose constructor argument is called ``alias``, for names that state has taken (``bias``)."""
    return dataclasses.field(default=default, metadata={"alias": alias})


def param(*, init: Literal[False] = False) -> Any:
    """Declare a parameter: state that is trained. ``setup`` gives its value; absent or ``None`` reads as ``None``."""
    return dataclasses.field(init=False, repr=False, compare=False, metadata={"state": "param"})


def buffer(*, persistent: bool = True, init: Literal[False] = False) -> Any:
    """Declare a buffer: state that ``compute`` may write. One that is not persistent is left out of ``state_dict``."""
    return dataclasses.field(init=False, repr=False, compare=False, metadata={"state": "buffer", "persistent": persistent})


def _constructor(cls: type) -> Any:
    """An ``__init__`` from the fields of ``cls``, under their aliases, that refuses in the library's words."""
    fields = [f for f in dataclasses.fields(cls) if f.init]
    names = {f.metadata.get("alias") or f.name: f.name for f in fields}
    parameters = [
        inspect.Parameter(
            alias,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=inspect.Parameter.empty if f.default is dataclasses.MISSING else f.default,
            annotation=f.type,
        )
        for alias, f in zip(names, fields, strict=True)
    ]
    signature = inspect.Signature(parameters)

    def __init__(self: Layer, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}: {error}") from None
        bound.apply_defaults()
        self._set(**{names[alias]: _hashable(value) for alias, value in bound.arguments.items()})
        self.validate()
        self._configured()

    me = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    __init__.__signature__ = signature.replace(parameters=[me, *parameters])  # type: ignore[attr-defined]
    __init__.__qualname__ = f"{cls.__qualname__}.__init__"
    return __init__


def _hashable(value: Any) -> Any:
    if isinstance(value, (jax.Array, np.ndarray)) or hasattr(value, "__jax_array__"):
        return Constant(jnp.asarray(value))
    if isinstance(value, list):
        return tuple(_hashable(v) for v in value)
    return value


@dataclass_transform(eq_default=False, field_specifiers=(config, param, buffer))
def layer(cls: type[T]) -> type[T]:
    """Make a class of annotated fields a layer: a dataclass with torch's constructor signature."""
    # What makes it immutable and comparable is written once, in Layer: generating it for each class takes most of the import.
    cls = dataclasses.dataclass(init=False, repr=False, eq=False)(cls)
    if "__init__" not in vars(cls):
        cls.__init__ = _constructor(cls)  # type: ignore[misc]
    states = {f.name: f.metadata for f in dataclasses.fields(cls) if not f.init}  # type: ignore[arg-type]
    cls._config_names = tuple(f.name for f in dataclasses.fields(cls) if f.init)  # type: ignore[arg-type,attr-defined]
    cls._state_names = frozenset(states)  # type: ignore[attr-defined]
    cls._buffer_names = frozenset(n for n, m in states.items() if m["state"] == "buffer")  # type: ignore[attr-defined]
    cls._transient_names = frozenset(n for n, m in states.items() if not m.get("persistent", True))  # type: ignore[attr-defined]
    return cls


@layer
class Layer:
    """A hashable description of a layer, with the pure pair ``init`` and ``apply``.

    A layer class is decorated with :func:`layer`, annotates its configuration as fields, declares its state with
    :func:`param` and :func:`buffer`, and defines some of: ``validate`` (check and canonicalise the configuration),
    ``setup`` (initial state), ``parts`` (children), ``compute`` (the mathematics) and ``extra_repr``.
    """

    _config_names: ClassVar[tuple[str, ...]] = ()
    _state_names: ClassVar[frozenset[str]] = frozenset()
    _buffer_names: ClassVar[frozenset[str]] = frozenset()
    _transient_names: ClassVar[frozenset[str]] = frozenset()
    lazy: ClassVar[bool] = False

    def validate(self) -> None:
        """Check the configuration; ``self._set(name=value)`` stores a canonical form."""

    def setup(self, key: Array) -> dict[str, Array | None]:
        """The layer's own initial state by name, in torch's order. A name not declared as a buffer is a parameter."""
        return {}

    def parts(self) -> Mapping[str, Layer]:
        """The children by name, in torch's order."""
        return {}

    def redrawn(self, key: Array, params: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of the whole by dotted name, for a layer that gives those of its parts another distribution."""
        return dict(params)

    def compute(self, s: Any, *input: Any, **kw: Any) -> Any:
        """The output. Configuration is read from ``self``, state and children from ``s``, at the time of use."""
        checks.fail(self, "this layer is a container and computes nothing itself", NotImplementedError)

    def extra_repr(self) -> str:
        """What stands between the parentheses of ``repr``, as torch prints it."""
        return ""

    def trainable(self, name: str) -> bool:
        """Whether the parameter ``name`` starts with ``requires_grad=True``. One that does not travels in ``buffers``."""
        return True

    def resolved(self, *inputs: Any, **kw: Any) -> Layer:
        """The layer that a lazy one becomes for these inputs."""
        return self

    def init(self, key: Array, *example: Any, **kw: Any) -> tuple[tree.Tree, tree.Tree]:
        """Fresh ``(params, buffers)``: nested dicts with torch's ``state_dict`` names.

        Args:
            example: the inputs of a call, arrays or ``jax.ShapeDtypeStruct``, from which lazy layers learn their sizes.
        """
        return self._init(Start(key, _resolve(self, example, kw)), "")

    def apply(
        self,
        params: Mapping[str, Any],
        buffers: Mapping[str, Any],
        *inputs: Any,
        train: bool = False,
        key: Array | None = None,
        **kw: Any,
    ) -> tuple[Any, tree.Tree]:
        """``(output, new_buffers)`` for inputs and state. ``key`` feeds whatever is random under ``train``."""
        _require_names(self, params, buffers)
        new_buffers = tree.copy(buffers)
        view = View(self, params, new_buffers, Run(train, rng.KeyStream(key)), "")
        return view(*inputs, **kw), new_buffers

    def own_state(self, make_key: Callable[[], Array]) -> dict[str, Any]:
        """``setup`` with the ``device`` field honoured: abstract arrays for ``"meta"``, else placed where it says."""
        if type(self).setup is Layer.setup:
            return {}
        key, device = make_key(), getattr(self, "device", None)
        if device is None:
            return self.setup(key)
        if str(device) == "meta":
            return self._abstract_state(key)
        return jax.device_put(self.setup(key), find_device(self, device))

    def _abstract_state(self, key: Array) -> dict[str, Any]:
        names: list[str] = []  # a transformation returns a dict in the order of the alphabet

        def values(key: Array) -> list[Array | None]:
            state = self.setup(key)
            names.extend(state)
            return [*state.values()]

        state = jax.eval_shape(values, key)
        return dict(zip(names, state, strict=True))

    @functools.cached_property
    def cached_parts(self) -> Mapping[str, Layer]:
        """``parts``, made once."""
        return self.parts()

    def _init(self, start: Start, path: str) -> tuple[tree.Tree, tree.Tree]:
        """``init`` of a layer at ``path`` of another."""
        params: tree.Tree = {}
        buffers: tree.Tree = {}
        for name, value in self.own_state(lambda: rng.fold(start.key, path)).items():
            if value is not None:
                held = name in self._buffer_names or not self.trainable(name)
                (buffers if held else params)[name] = value
        for name, part in self.cached_parts.items():
            part_params, part_buffers = part._init(start, f"{path}.{name}" if path else name)
            if part_params:
                params[name] = part_params
            if part_buffers:
                buffers[name] = part_buffers
        if type(self).redrawn is not Layer.redrawn:
            params = tree.unflatten(self.redrawn(rng.fold(start.key, path), tree.flatten(params)))
        return params, buffers

    def _config(self) -> tuple[Any, ...]:
        return tuple(vars(self).get(name) for name in self._config_names)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._config() == other._config()  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash((type(self), self._config()))

    def __setattr__(self, name: str, value: Any) -> None:
        checks.fail(self, "a pure layer cannot be changed; construct another", AttributeError, name=name)

    def __delattr__(self, name: str) -> None:
        checks.fail(self, "a pure layer cannot be changed; construct another", AttributeError, name=name)

    def _configured(self) -> None:
        """Called last in construction; the stateful twin makes its parameters here."""

    def _set(self, **values: Any) -> None:
        vars(self).update(values)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "cached_parts"}

    def __repr__(self) -> str:
        return format_tree(type(self).__name__, self.extra_repr(), {n: repr(c) for n, c in self.cached_parts.items()})


def find_device(who: object, device: Any) -> Any:
    """A jax device or sharding from torch's spellings: ``"cpu"``, ``"cuda:1"``, a jax object."""
    if not isinstance(device, str):
        return device
    platform, _, number = device.partition(":")
    try:
        return jax.devices({"cuda": "gpu"}.get(platform, platform))[int(number or 0)]
    except (RuntimeError, IndexError, ValueError):
        checks.fail(who, "no such device here", RuntimeError, device=device)


@functools.lru_cache(maxsize=4096)
def _names(spec: Layer) -> frozenset[str]:
    params, buffers = jax.eval_shape(lambda: spec._init(Start(jax.random.key(0), {}), ""))
    return frozenset(tree.flatten(params)) | frozenset(tree.flatten(buffers))


def _lazy_paths(spec: Layer, path: str) -> Iterator[str]:
    if spec.lazy:
        yield path
    for name, part in spec.cached_parts.items():
        yield from _lazy_paths(part, f"{path}.{name}" if path else name)


def _resolve(spec: Layer, example: tuple[Any, ...], kw: dict[str, Any]) -> dict[str, Layer]:
    """What the lazy parts become, by path, in a call with arguments like ``example``: it is run for its shapes alone."""
    lazy, known = {*_lazy_paths(spec, "")}, {}
    if not lazy:
        return known
    leaves, treedef = jax.tree.flatten((example, kw))
    where = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "shape")]

    def call(key: Array, arrays: list[Array]) -> None:
        start, filled = Start(key, known), list(leaves)
        for i, array in zip(where, arrays, strict=True):
            filled[i] = array
        inputs, named = jax.tree.unflatten(treedef, filled)
        View(spec, *start.state(spec, ""), Run(False, rng.KeyStream(key), start), "")(*inputs, **named)

    if leaves:
        jax.eval_shape(call, jax.random.key(0), [leaves[i] for i in where])
    unknown = sorted(lazy - known.keys())
    if unknown:
        checks.fail(spec, "lazy layers learn their sizes from an example that reaches them, init(key, input)", layers=unknown)
    return known


def _require_names(spec: Layer, params: Mapping[str, Any], buffers: Mapping[str, Any]) -> None:
    require_names(spec, _names(spec), {*tree.flatten(params), *tree.flatten(buffers)})


def require_names(who: object, expected: frozenset[str] | set[str], given: set[str], exc: type[Exception] = KeyError) -> None:
    """Refuse trees that lack a leaf, which would else be computed without, or hold one that means nothing."""
    missing, unexpected = sorted(expected - given), sorted(given - expected)
    if missing or unexpected:
        checks.fail(who, "params and buffers must have the names that init gives", exc, missing=missing, unexpected=unexpected)


def format_tree(name: str, extra: str, children: Mapping[str, str]) -> str:
    """torch's layout of a module's repr."""
    if not children and "\n" not in extra:
        return f"{name}({extra})"
    parts = ([extra] if extra else []) + [f"({child}): {text}" for child, text in children.items()]
    return f"{name}(\n  " + "\n".join(parts).replace("\n", "\n  ") + "\n)"


def group_repeats(children: Mapping[str, str]) -> dict[str, str]:
    """Runs of equal reprs in a list as one entry, ``(0-3): 4 x Linear(...)``, as torch prints them."""
    runs: list[tuple[list[str], str]] = []
    for name, text in children.items():
        if runs and runs[-1][1] == text:
            runs[-1][0].append(name)
        else:
            runs.append(([name], text))
    return {f"{n[0]}-{n[-1]}" if len(n) > 1 else n[0]: f"{len(n)} x {text}" if len(n) > 1 else text for n, text in runs}
