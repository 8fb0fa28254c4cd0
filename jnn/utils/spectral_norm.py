"""Spectral normalisation as a hook: ``weight`` in terms of ``weight_orig``, ``weight_u`` and ``weight_v``.

Reference: Miyato et al., Spectral normalization for generative adversarial networks, 2018.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from ..core import checks, dtypes, initial, rng
from ..layers.normalization import normalize
from ..module import catalogue
from ..module.module import Module
from ..module.parameter import Parameter
from .weight_norm import attach, detach, find_hook

Array = jax.Array
M = TypeVar("M", bound=Module)


def as_matrix(weight: Any, dim: int) -> Array:
    """``weight`` with ``dim`` first and the rest flattened, in at least float32."""
    weight = jnp.asarray(weight)
    rows = jnp.moveaxis(weight, dim, 0)
    return rows.reshape(rows.shape[0], -1).astype(dtypes.accumulator(weight.dtype))


def random_vectors(who: object, matrix: Array, dtype: Any, eps: float) -> tuple[Array, Array]:
    """Random unit vectors of the sizes of a matrix's rows and columns."""
    draws = (initial.normal(rng.next_key(who), (n,), matrix.dtype) for n in matrix.shape)
    u, v = (normalize(x, dim=0, eps=eps).astype(dtype) for x in draws)
    return u, v


@functools.partial(jax.jit, static_argnames=("n", "eps", "v_first"))
def power_iteration(matrix: Array, u: Array, v: Array, n: int, eps: float, v_first: bool) -> tuple[Array, Array]:
    """``u`` and ``v`` nearer to the first singular vectors of a matrix by ``n`` iterations, without derivatives."""
    matrix, (u, v), dtype = lax.stop_gradient(matrix), lax.stop_gradient((u, v)), u.dtype

    def step(_: int, vectors: tuple[Array, Array]) -> tuple[Array, Array]:
        u, v = vectors
        u = u if v_first else normalize(matrix @ v, dim=0, eps=eps)
        v = normalize(matrix.conj().T @ u, dim=0, eps=eps)
        return (normalize(matrix @ v, dim=0, eps=eps) if v_first else u), v

    u, v = lax.fori_loop(0, n, step, (u.astype(matrix.dtype), v.astype(matrix.dtype)))
    return u.astype(dtype), v.astype(dtype)


def divided(weight: Any, u: Any, v: Any, dim: int) -> Array:
    """``weight / (u^H W v)``, in which ``u`` and ``v`` are constants."""
    weight, matrix = jnp.asarray(weight), as_matrix(weight, dim)
    u, v = (lax.stop_gradient(jnp.asarray(x)).astype(matrix.dtype) for x in (u, v))
    return (weight.astype(matrix.dtype) / jnp.vdot(u, matrix @ v)).astype(weight.dtype)


def output_dim(module: Module, dim: int | None) -> int:
    """``dim``, or that of the outputs: 1 for transposed convolutions, else 0."""
    transposed = (catalogue.ConvTranspose1d, catalogue.ConvTranspose2d, catalogue.ConvTranspose3d)
    return int(isinstance(module, transposed)) if dim is None else dim


@dataclasses.dataclass(frozen=True)
class SpectralNorm:
    """The hook that :func:`spectral_norm` registers."""

    name: str
    n_power_iterations: int
    dim: int
    eps: float

    def _state(self, module: Module) -> tuple[Any, Any, Any]:
        return tuple(getattr(module, f"{self.name}_{part}") for part in ("orig", "u", "v"))  # type: ignore[return-value]

    def compute_weight(self, module: Module) -> Array:
        """The weight for the present singular vectors."""
        return divided(*self._state(module), self.dim)

    def __call__(self, module: Module, inputs: Any) -> None:
        vars(module).pop(self.name, None)  # what was assigned to the name; torch overwrites it here
        if module.training:
            weight, *vectors = self._state(module)
            u, v = map(jnp.asarray, vectors)
            u, v = power_iteration(as_matrix(weight, self.dim), u, v, self.n_power_iterations, self.eps, v_first=True)
            setattr(module, f"{self.name}_u", u)
            setattr(module, f"{self.name}_v", v)


@dataclasses.dataclass(frozen=True)
class _Save:
    """Notes in a state_dict's metadata that the singular vectors are in it."""

    fn: SpectralNorm

    def __call__(self, module: Module, state_dict: Any, prefix: str, local_metadata: dict[str, Any]) -> None:
        local_metadata.setdefault("spectral_norm", {})[f"{self.fn.name}.version"] = 1


@dataclasses.dataclass(frozen=True)
class _Load:
    """Finds ``v`` for a state_dict of torch before 1.0, which holds the normalised weight instead."""

    fn: SpectralNorm

    def __call__(self, state_dict: Any, prefix: str, local_metadata: dict[str, Any], strict: bool, missing: list[str], *rest: Any) -> None:
        key = prefix + self.fn.name
        version = local_metadata.get("spectral_norm", {}).get(f"{self.fn.name}.version")
        complete = all(f"{key}_{part}" in state_dict for part in ("orig", "u", "v")) and key not in state_dict
        if version is not None or complete:
            return
        lacking = [k for k in (f"{key}_orig", key, f"{key}_u") if k not in state_dict]
        if lacking:
            missing += lacking if strict else []
            return
        weight, u = jnp.asarray(state_dict[f"{key}_orig"]), jnp.asarray(state_dict[f"{key}_u"])
        sigma = jnp.mean(weight / jnp.asarray(state_dict.pop(key)))
        matrix = as_matrix(weight, self.fn.dim)
        # W v points along u, and u^T W v is sigma.
        v = jnp.linalg.pinv(matrix.T @ matrix) @ (matrix.T @ u)
        state_dict[f"{key}_v"] = v * (sigma / jnp.dot(u, matrix @ v))


def spectral_norm(module: M, name: str = "weight", n_power_iterations: int = 1, eps: float = 1e-12, dim: int | None = None) -> M:
    """Divide a parameter by its largest singular value, which a power iteration follows at each training step.

    ``w = w_orig / (u^T W v)``; :func:`jnn.utils.parametrizations.spectral_norm` is the newer form.

    Args:
        module: the module that holds it.
        name: the parameter's name; ``{name}_orig`` is the new parameter, ``{name}_u`` and ``{name}_v`` are buffers.
        n_power_iterations: how many iterations a call in training mode does.
        eps: the least norm that a vector is divided by.
        dim: the dimension of the outputs; None for 1 in transposed convolutions and 0 elsewhere.

    Raises:
        RuntimeError: the parameter has a spectral normalisation.
        ValueError: it is None, or ``n_power_iterations`` is not positive.

    Differs from torch: the weight is computed whenever it is read; before the first call torch shows the one not normalised.
    """
    who = "spectral_norm"
    checks.require(find_hook(module, SpectralNorm, name) is None, module, "it has a spectral_norm already", RuntimeError, name=name)
    checks.integer(who, "n_power_iterations", n_power_iterations, 1)
    checks.require(name in module._parameters, module, "no parameter is called so", KeyError, name=name)
    weight = module._parameters[name]
    checks.require(weight is not None, module, "the parameter is None", ValueError, name=name)
    fn = SpectralNorm(name, n_power_iterations, output_dim(module, dim), eps)
    u, v = random_vectors(who, as_matrix(weight, fn.dim), weight.dtype, eps)
    delattr(module, name)
    module.register_parameter(f"{name}_orig", weight)
    module.register_buffer(f"{name}_u", u)
    module.register_buffer(f"{name}_v", v)
    attach(module, fn)
    module._register_state_dict_hook(_Save(fn))
    module._register_load_state_dict_pre_hook(_Load(fn))
    return module


def remove_spectral_norm(module: M, name: str = "weight") -> M:
    """Make a spectrally normalised parameter one again, with the value it has.

    Raises:
        ValueError: it has no spectral normalisation.
    """
    fn, weight = detach(module, SpectralNorm, name)
    for part in ("u", "v", "orig"):
        delattr(module, f"{name}_{part}")
    module.register_parameter(name, Parameter(weight))
    for registry, hook in ((module._state_dict_hooks, _Save(fn)), (module._load_state_dict_pre_hooks, _Load(fn))):
        for number in [n for n, registered in registry.items() if registered == hook]:
            del registry[number]
    return module
