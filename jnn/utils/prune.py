"""Pruning: parameters of which a mask keeps some, as torch.nn.utils.prune.

A pruned ``weight`` is the product of the parameter ``weight_orig`` and the buffer ``weight_mask``, computed whenever it is
read, so that it is right inside compiled and differentiated calls too; gradients reach ``weight_orig`` masked.
"""

from __future__ import annotations

import abc
import numbers
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp

from ..core import checks, dtypes, rng
from ..layers.distance import vector_norm
from ..module.module import Module
from ..module.parameter import Parameter

Array = jax.Array
M = TypeVar("M", bound=Module)

__all__ = [
    "BasePruningMethod",
    "CustomFromMask",
    "Identity",
    "L1Unstructured",
    "LnStructured",
    "PruningContainer",
    "RandomStructured",
    "RandomUnstructured",
    "custom_from_mask",
    "global_unstructured",
    "identity",
    "is_pruned",
    "l1_unstructured",
    "ln_structured",
    "random_structured",
    "random_unstructured",
    "remove",
]


class BasePruningMethod(abc.ABC):
    """Base of the pruning methods: define :meth:`compute_mask`, and set ``PRUNING_TYPE``.

    The type says what a method sees when it prunes a parameter again: the entries that are left (``"unstructured"``), the
    channels along its ``dim`` that are left (``"structured"``), or all entries (``"global"``).
    """

    PRUNING_TYPE: ClassVar[str]
    _tensor_name: str | None = None

    def __call__(self, module: Module, inputs: Any) -> None:
        # An array that was assigned to the name is forgotten, as torch overwrites it here.
        vars(module).pop(self._require_applied(), None)

    @abc.abstractmethod
    def compute_mask(self, t: Array, default_mask: Array) -> Array:
        """The mask for an array of importance scores.

        Args:
            t: the scores, or the parameter itself.
            default_mask: what earlier pruning has left; of the shape of ``t``, as the mask.
        """

    def apply_mask(self, module: Module) -> Array:
        """The pruned parameter of a module: its original times its mask."""
        self._require_applied()
        orig = jnp.asarray(getattr(module, f"{self._tensor_name}_orig"))
        return jnp.asarray(getattr(module, f"{self._tensor_name}_mask")).astype(orig.dtype) * orig

    @classmethod
    def apply(cls, module: Module, name: str, *args: Any, importance_scores: Any = None, **kwargs: Any) -> BasePruningMethod:
        """Prune a parameter of a module, further if it is pruned; returns the method that acts on it from now on.

        Args:
            module: the module that holds it.
            name: the parameter's name.
            importance_scores: what to judge its entries by, in its shape; the parameter itself when None.
            args, kwargs: what the method is constructed with.

        Raises:
            AssertionError: importance_scores have another shape.
            TypeError: ``name`` is not a parameter.
        """
        method = cls(*args, **kwargs)
        method._tensor_name = name
        found = [*_hooks(module, name)]
        checks.require(len(found) <= 1, module, "one parameter can have one pruning hook", AssertionError, name=name)
        value = getattr(module, name)
        if found:
            method = PruningContainer(*_flat(found[0][1]), method)
        else:
            checks.require(isinstance(value, Parameter), module, f"only a Parameter can be pruned, {name} is not", TypeError)
        t = jnp.asarray(value)
        scores = _scores(module, t, importance_scores)
        mask = method.compute_mask(scores, default_mask=jnp.asarray(module._buffers[f"{name}_mask"]) if found else jnp.ones_like(t))
        # Nothing of the module has changed until here, where nothing can fail.
        if found:
            del module._forward_pre_hooks[found[0][0]]
        else:
            module.register_parameter(f"{name}_orig", value)
            del module._parameters[name]
        module.register_buffer(f"{name}_mask", mask)
        module._computed[name] = method.apply_mask
        module.register_forward_pre_hook(method)
        return method

    def prune(self, t: Any, default_mask: Any = None, importance_scores: Any = None) -> Array:
        """An array pruned, no module concerned.

        Args:
            t: the array.
            default_mask: what earlier pruning has left; everything when None.
            importance_scores: what to judge the entries by; the array itself when None.
        """
        t = jnp.asarray(t)
        mask = jnp.ones_like(t) if default_mask is None else jnp.asarray(default_mask)
        return t * self.compute_mask(_scores(self, t, importance_scores), default_mask=mask)

    def remove(self, module: Module) -> None:
        """Make the pruned values the parameter's own; the mask is gone, and nothing is undone."""
        name = self._require_applied()
        weight = self.apply_mask(module)
        self(module, ())
        parameter = module._parameters[f"{name}_orig"]
        parameter.data = weight
        delattr(module, name)
        delattr(module, f"{name}_orig")
        delattr(module, f"{name}_mask")
        module.register_parameter(name, parameter)

    def _require_applied(self) -> str:
        if self._tensor_name is None:
            checks.fail(self, "this method has not been applied to a parameter", AttributeError)
        return self._tensor_name


def _hooks(module: Module, name: str | None = None) -> Iterator[tuple[int, BasePruningMethod]]:
    """The numbers and pruning methods among a module's hooks, those on ``name`` or all."""
    for number, hook in module._forward_pre_hooks.items():
        if isinstance(hook.call, BasePruningMethod) and name in (None, hook.call._tensor_name):
            yield number, hook.call


def _flat(method: BasePruningMethod) -> Iterable[BasePruningMethod]:
    return method if isinstance(method, PruningContainer) else (method,)


def _scores(who: object, t: Array, importance_scores: Any) -> Array:
    if importance_scores is None:
        return t
    scores = jnp.asarray(importance_scores)
    rule = "importance_scores must have the shape of what is pruned"
    checks.require(scores.shape == t.shape, who, rule, AssertionError, importance_scores=scores, pruned=t)
    return scores


class PruningContainer(BasePruningMethod):
    """Pruning methods applied one after another to one parameter.

    Args:
        args: the methods.
    """

    def __init__(self, *args: BasePruningMethod) -> None:
        self._pruning_methods: tuple[BasePruningMethod, ...] = ()
        self._tensor_name = args[0]._tensor_name if args else None
        for method in args:
            self.add_pruning_method(method)

    def add_pruning_method(self, method: BasePruningMethod) -> None:
        """Add a method, which acts on what those before it have left."""
        checks.require(isinstance(method, BasePruningMethod), self, "only pruning methods can be added", TypeError, method=type(method))
        same = method._tensor_name == self._tensor_name
        checks.require(same, self, "all methods must act on one parameter", ValueError, name=method._tensor_name, others=self._tensor_name)
        self._pruning_methods += (method,)

    def __len__(self) -> int:
        return len(self._pruning_methods)

    def __iter__(self) -> Iterator[BasePruningMethod]:
        return iter(self._pruning_methods)

    def __getitem__(self, idx: Any) -> Any:
        return self._pruning_methods[idx]

    def compute_mask(self, t: Array, default_mask: Array) -> Array:
        """The mask of the last method on what ``default_mask`` has left, together with it."""
        method = self._pruning_methods[-1]
        kind = method.PRUNING_TYPE
        where: Any = ...
        if kind == "unstructured":
            where = jnp.nonzero(default_mask == 1)
        elif kind == "structured":
            checks.require(hasattr(method, "dim"), method, "a structured method must have a dim", AttributeError)
            dim = checks.dim(method, method.dim, t.ndim)  # type: ignore[attr-defined]
            left = jnp.any(default_mask != 0, tuple(d for d in range(t.ndim) if d != dim))
            where = (slice(None),) * dim + (jnp.flatnonzero(left),)
        else:
            checks.require(kind == "global", method, "PRUNING_TYPE must be unstructured, structured or global", PRUNING_TYPE=kind)
        new = method.compute_mask(t[where], default_mask=default_mask[where])
        return default_mask.astype(t.dtype).at[where].set(new.astype(t.dtype))


class Identity(BasePruningMethod):
    """Prunes nothing: the mask is of ones."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t: Array, default_mask: Array) -> Array:
        return default_mask


class _Amount(BasePruningMethod):
    """Base of the methods that prune an amount of what there is."""

    def __init__(self, amount: float) -> None:
        number = isinstance(amount, numbers.Real)
        checks.require(number, self, "amount must be an int or a float", TypeError, amount=amount)
        ok = amount >= 0 and (isinstance(amount, numbers.Integral) or amount <= 1)
        checks.require(ok, self, "amount must be a number of units, or a fraction of them in [0, 1]", amount=amount)
        self.amount = amount

    def _lowest(self, scores: Array) -> Array:
        """The positions of the units to prune."""
        n = int(self.amount) if isinstance(self.amount, numbers.Integral) else round(self.amount * scores.size)
        checks.require(n <= scores.size, self, "amount must not be more than there is", amount=self.amount, units=scores.size)
        return jnp.argsort(scores)[:n]


class _Unstructured(_Amount):
    PRUNING_TYPE = "unstructured"

    def _judge(self, t: Array) -> Array:
        """What to judge each entry by."""
        raise NotImplementedError

    def compute_mask(self, t: Array, default_mask: Array) -> Array:
        flat = jnp.ravel(default_mask).at[self._lowest(jnp.ravel(self._judge(t)))].set(0)
        return jnp.reshape(flat, default_mask.shape)


class _Structured(_Amount):
    PRUNING_TYPE = "structured"
    dim: int

    def _judge(self, t: Array, dim: int) -> Array:
        """What to judge each channel by."""
        raise NotImplementedError

    def compute_mask(self, t: Array, default_mask: Array) -> Array:
        checks.require(t.ndim >= 2, self, "only what has at least two dimensions has channels", shape=t.shape)
        dim = checks.dim(self, self.dim, t.ndim)
        lowest = self._lowest(self._judge(t, dim))
        return default_mask.astype(t.dtype).at[(slice(None),) * dim + (lowest,)].set(0) if lowest.size else default_mask


class RandomUnstructured(_Unstructured):
    """Prunes entries at random, by the generator that ``jnn.manual_seed`` seeds.

    Args:
        amount: how many entries, an int, or which fraction of them, a float.
    """

    def _judge(self, t: Array) -> Array:
        return jax.random.uniform(rng.next_key(self), t.shape)


class L1Unstructured(_Unstructured):
    """Prunes the entries of the smallest absolute values.

    Args:
        amount: how many entries, an int, or which fraction of them, a float.
    """

    def _judge(self, t: Array) -> Array:
        return jnp.abs(t)


class RandomStructured(_Structured):
    """Prunes channels at random, by the generator that ``jnn.manual_seed`` seeds.

    Args:
        amount: how many channels, an int, or which fraction of them, a float.
        dim: the dimension along which the channels lie.
    """

    def __init__(self, amount: float, dim: int = -1) -> None:
        super().__init__(amount)
        self.dim = dim

    def _judge(self, t: Array, dim: int) -> Array:
        return jax.random.uniform(rng.next_key(self), t.shape[dim : dim + 1])


class LnStructured(_Structured):
    """Prunes the channels of the smallest norms.

    Args:
        amount: how many channels, an int, or which fraction of them, a float.
        n: the order of the norm: a number, infinities among them, ``"fro"``, or ``"nuc"`` for the sum of singular values,
            which takes three dimensions.
        dim: the dimension along which the channels lie.
    """

    def __init__(self, amount: float, n: Any, dim: int = -1) -> None:
        super().__init__(amount)
        self.n = n
        self.dim = dim

    def _judge(self, t: Array, dim: int) -> Array:
        axes = tuple(axis for axis in range(t.ndim) if axis != dim)
        t = t.astype(dtypes.accumulator(t.dtype))
        if self.n == "nuc":
            checks.require(len(axes) == 2, self, "the nuclear norm takes three dimensions", RuntimeError, shape=t.shape)
            return jnp.linalg.norm(t, "nuc", axes)
        known = self.n == "fro" or isinstance(self.n, numbers.Real)
        checks.require(known, self, "n must be a number, 'fro' or 'nuc'", RuntimeError, n=self.n)
        return vector_norm(t, 2.0 if self.n == "fro" else float(self.n), axes)


class CustomFromMask(BasePruningMethod):
    """Prunes what a given mask says.

    Args:
        mask: 0 where to prune and 1 elsewhere, in the shape of what is pruned.
    """

    PRUNING_TYPE = "global"

    def __init__(self, mask: Any) -> None:
        self.mask = jnp.asarray(mask)

    def compute_mask(self, t: Array, default_mask: Array) -> Array:
        same = default_mask.shape == self.mask.shape
        checks.require(same, self, "mask must have the shape of what is pruned", AssertionError, mask=self.mask, pruned=default_mask)
        return default_mask * self.mask.astype(default_mask.dtype)


def identity(module: M, name: str) -> M:
    """Give a parameter a mask of ones; returns the module, changed, as all functions here do."""
    Identity.apply(module, name)
    return module


def random_unstructured(module: M, name: str, amount: float) -> M:
    """Prune entries of a parameter at random; see :class:`RandomUnstructured`."""
    RandomUnstructured.apply(module, name, amount)
    return module


def l1_unstructured(module: M, name: str, amount: float, importance_scores: Any = None) -> M:
    """Prune the entries of a parameter that have the smallest absolute values, or scores; see :class:`L1Unstructured`."""
    L1Unstructured.apply(module, name, amount, importance_scores=importance_scores)
    return module


def random_structured(module: M, name: str, amount: float, dim: int) -> M:
    """Prune channels of a parameter at random; see :class:`RandomStructured`."""
    RandomStructured.apply(module, name, amount, dim)
    return module


def ln_structured(module: M, name: str, amount: float, n: Any, dim: int, importance_scores: Any = None) -> M:
    """Prune the channels of a parameter, or of its scores, that have the smallest norms; see :class:`LnStructured`."""
    LnStructured.apply(module, name, amount, n, dim, importance_scores=importance_scores)
    return module


def custom_from_mask(module: M, name: str, mask: Any) -> M:
    """Prune a parameter by a given mask; see :class:`CustomFromMask`."""
    CustomFromMask.apply(module, name, mask)
    return module


def global_unstructured(parameters: Any, pruning_method: Any, importance_scores: Any = None, **kwargs: Any) -> None:
    """Prune several parameters as if they were one.

    Args:
        parameters: pairs of a module and the name of its parameter.
        pruning_method: a class of methods with ``PRUNING_TYPE = "unstructured"``.
        importance_scores: a dict from such pairs to scores; a parameter that it lacks is judged by itself.
        kwargs: what the method is constructed with, as ``amount``.

    Raises:
        TypeError: parameters cannot be iterated, importance_scores is no dict, or the method is of another type.
    """
    who = "global_unstructured"
    checks.require(
        isinstance(parameters, Iterable), who, "parameters must be pairs of a module and a name", TypeError, got=type(parameters)
    )
    given = {} if importance_scores is None else importance_scores
    checks.require(isinstance(given, Mapping), who, "importance_scores must be a dict", TypeError, importance_scores=type(given))
    method = pruning_method(**kwargs)
    kind = method.PRUNING_TYPE
    checks.require(kind == "unstructured", who, "only unstructured methods can prune globally", TypeError, PRUNING_TYPE=kind)
    pairs = [*parameters]
    checks.require(len(pairs) > 0, who, "parameters must not be empty")
    values = [jnp.asarray(getattr(module, name)) for module, name in pairs]
    scores = [_scores(who, value, given.get(pair)) for pair, value in zip(pairs, values, strict=True)]
    masks = [jnp.asarray(getattr(m, f"{name}_mask", jnp.ones_like(value))) for (m, name), value in zip(pairs, values, strict=True)]
    mask = PruningContainer(method).compute_mask(*(jnp.concatenate([jnp.ravel(a) for a in arrays]) for arrays in (scores, masks)))
    start = 0
    for (module, name), value in zip(pairs, values, strict=True):
        custom_from_mask(module, name, jnp.reshape(mask[start : start + value.size], value.shape))
        start += value.size


def remove(module: M, name: str) -> M:
    """Make the pruned values of a parameter its own, and forget the mask; nothing is undone.

    Raises:
        ValueError: the parameter is not pruned.
    """
    found = next(_hooks(module, name), None)
    if found is None:
        checks.fail(module, "only a parameter that is pruned can have its pruning removed", ValueError, name=name)
    number, method = found
    method.remove(module)
    del module._forward_pre_hooks[number]
    return module


def is_pruned(module: Module) -> bool:
    """Whether a parameter of the module, or of one in it, is pruned."""
    return any(True for m in module.modules() for _ in _hooks(m))
