"""Ready parametrizations: orthogonal, spectral_norm, weight_norm."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import expm

from ..core import checks, dtypes, initial, rng
from ..core.function import as_array
from ..layers.normalization import normalize
from ..module.module import Module
from ..module.parameter import Variable
from .parametrize import register_parametrization
from .spectral_norm import as_matrix, divided, output_dim, power_iteration, random_vectors
from .weight_norm import norm_except_dim, normalised

Array = jax.Array
M = TypeVar("M", bound=Module)

__all__ = ["orthogonal", "spectral_norm", "weight_norm"]

_MAPS = ("matrix_exp", "cayley", "householder")


def _tensor(module: Module, name: str) -> Array:
    held = getattr(module, name, None)
    checks.require(isinstance(held, (Variable, jax.Array)), module, "no parameter or buffer is called so", ValueError, name=name)
    return as_array(held)


def _identity(shape: tuple[int, ...], dtype: Any) -> Array:
    """The identity matrix, cut or padded, for each of a batch."""
    return jnp.broadcast_to(jnp.eye(*shape[-2:], dtype=dtype), shape)


def _reflections(a: Array) -> Array:
    """The first columns of a product of Householder reflections, whose vectors are below the diagonal of ``a``.

    ``H_1 ... H_k = I - V U^-1 V^T`` with ``U`` the upper triangle of ``V^T V``, its diagonal halved (the compact WY form).
    """
    k, one = a.shape[-1], _identity(a.shape, a.dtype)
    v = jnp.tril(a, -1) + one
    gram = v.mT @ v
    inner = jnp.triu(gram, 1) + _identity(gram.shape, a.dtype) * gram / 2
    return one - v @ lax.linalg.triangular_solve(inner, v[..., :k, :].mT, left_side=True)


def _orthonormal(a: Array) -> Array:
    """The Q of a tall ``a = Q R`` with the diagonal of R not negative."""
    q, r = jnp.linalg.qr(a)
    return q * jnp.sign(jnp.diagonal(r, axis1=-2, axis2=-1))[..., None, :]


def _cayley(a: Array) -> Array:
    one = _identity(a.shape, a.dtype)
    return jnp.linalg.solve(one - a / 2, one + a / 2)


class _Orthogonal(Module):
    """Maps a matrix, or a batch of them, to one with orthonormal columns (rows, if it is wide)."""

    base: Any

    def __init__(self, weight: Array, orthogonal_map: str, *, use_trivialization: bool = True) -> None:
        super().__init__()
        ok = not jnp.iscomplexobj(weight) or orthogonal_map != "householder"
        checks.require(ok, "orthogonal", "the householder map has no complex form", ValueError, dtype=weight.dtype)
        self.shape = weight.shape
        self.orthogonal_map = orthogonal_map
        if use_trivialization:
            self.register_buffer("base", None)

    def forward(self, x: Array) -> Array:
        wide, dtype = x.shape[-2] < x.shape[-1], x.dtype
        x = (x.mT if wide else x).astype(dtypes.accumulator(dtype))
        n, k = x.shape[-2:]
        if self.orthogonal_map == "householder":
            signs = lax.stop_gradient(jnp.trunc(jnp.diagonal(x, axis1=-2, axis2=-1)))
            q = _reflections(x) * signs[..., None, :]
        else:
            low = jnp.concatenate([jnp.tril(x), jnp.zeros((*x.shape[:-1], n - k), x.dtype)], -1)
            skew = low - low.mT.conj()
            q = (expm if self.orthogonal_map == "matrix_exp" else _cayley)(skew)[..., :k]
        if hasattr(self, "base"):
            q = as_array(self.base).astype(q.dtype) @ q
        return (q.mT if wide else q).astype(dtype)

    def right_inverse(self, q: Array) -> Array:
        checks.require(q.shape == self.shape, "orthogonal", "the shape must be kept", ValueError, shape=self.shape, new=q.shape)
        wide, dtype = q.shape[-2] < q.shape[-1], q.dtype
        tall = (q.mT if wide else q).astype(dtypes.accumulator(dtype))
        n, k = tall.shape[-2:]
        if hasattr(self, "base"):
            if n == k:
                gram, tolerance = tall.mT.conj() @ tall, 10 * n * float(jnp.finfo(dtype).eps)
                is_orthogonal = jnp.allclose(gram, _identity(gram.shape, gram.dtype), atol=tolerance)
                base = jnp.where(is_orthogonal, tall, _orthonormal(tall))
            else:
                more = initial.normal(rng.next_key("orthogonal"), (*tall.shape[:-1], n - k), tall.dtype)
                base = _orthonormal(jnp.concatenate([tall, more], -1))
            self.base = base.astype(dtype)
            # Minus the identity, so that the reflections, which are minus the identity for zeros, give it.
            return -_identity(self.shape, dtype)
        if self.orthogonal_map != "householder":
            rule = f"the {self.orthogonal_map} map cannot be assigned to with use_trivialization=False"
            checks.fail("orthogonal", rule, NotImplementedError)
        raw, tau = jnp.linalg.qr(tall, mode="raw")
        vectors, diagonal = raw.mT, jnp.diagonal(raw, axis1=-2, axis2=-1)
        # LAPACK gives tau 0, and nothing else does, where it reflects nothing.
        signs = jnp.sign(diagonal) * jnp.where(tau == 0, -1, 1)
        found = jnp.tril(vectors, -1) + jnp.triu(vectors, 1) + signs[..., None, :] * _identity(tall.shape, tall.dtype)
        return (found.mT if wide else found).astype(dtype)


def orthogonal(module: M, name: str = "weight", orthogonal_map: str | None = None, *, use_trivialization: bool = True) -> M:
    """Make a matrix, or a batch of them, orthogonal (unitary): orthonormal columns, or rows if it is wide.

    Args:
        module: the module that holds it.
        name: its name.
        orthogonal_map: ``"matrix_exp"`` and ``"cayley"`` (of a skew matrix), or ``"householder"`` (a product of
            reflections). None is matrix_exp for square and complex matrices, householder for others.
        use_trivialization: whether the map starts at ``base``, an orthogonal buffer, near which it is well conditioned.
            Without it the first two maps cannot be assigned to, and do not keep the matrix, orthogonal or not.

    Raises:
        ValueError: there is no such tensor or map, it has fewer than 2 dimensions, or householder is asked for complex ones.

    Reference: Lezcano Casado, Trivializations for gradient-based optimization on manifolds, 2019.
    """
    weight = _tensor(module, name)
    checks.require(weight.ndim >= 2, "orthogonal", "it must be a matrix or a batch of them", ValueError, weight=weight)
    if orthogonal_map is None:
        exponential = weight.shape[-2] == weight.shape[-1] or jnp.iscomplexobj(weight)
        orthogonal_map = "matrix_exp" if exponential else "householder"
    checks.choice("orthogonal", "orthogonal_map", orthogonal_map, _MAPS)
    new = _Orthogonal(weight, orthogonal_map, use_trivialization=use_trivialization)
    return register_parametrization(module, name, new, unsafe=True)


class _WeightNorm(Module):
    def __init__(self, dim: int | None = 0) -> None:
        super().__init__()
        self.dim = -1 if dim is None else dim

    def forward(self, weight_g: Array, weight_v: Array) -> Array:
        return normalised(weight_v, weight_g, self.dim)

    def right_inverse(self, weight: Array) -> tuple[Array, Array]:
        return norm_except_dim(weight, self.dim), weight


@dataclasses.dataclass(frozen=True)
class _LoadOlder:
    """Takes what the older weight_norm has saved."""

    name: str

    def __call__(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        old = [f"{prefix}{self.name}_{part}" for part in ("g", "v")]
        if all(key in state_dict for key in old):
            for i, key in enumerate(old):
                state_dict[f"{prefix}parametrizations.{self.name}.original{i}"] = state_dict.pop(key)


def weight_norm(module: M, name: str = "weight", dim: int | None = 0) -> M:
    """Replace a parameter by its magnitude and its direction: ``w = g v / |v|``.

    Args:
        module: the module that holds it.
        name: its name; ``parametrizations.{name}.original0`` is g and ``original1`` is v.
        dim: the dimension that keeps its own norms; None for one norm of the whole.

    Reference: Salimans and Kingma, Weight normalization, 2016.
    """
    register_parametrization(module, name, _WeightNorm(dim), unsafe=True)
    module._register_load_state_dict_pre_hook(_LoadOlder(name))
    return module


class _SpectralNorm(Module):
    _u: Any
    _v: Any

    def __init__(self, weight: Array, n_power_iterations: int = 1, dim: int = 0, eps: float = 1e-12) -> None:
        super().__init__()
        who = "spectral_norm"
        self.dim, self.eps = checks.dim(who, dim, weight.ndim), eps
        checks.integer(who, "n_power_iterations", n_power_iterations, 1)
        if weight.ndim > 1:
            self.n_power_iterations = n_power_iterations
            matrix = as_matrix(weight, self.dim)
            u, v = random_vectors(who, matrix, weight.dtype, eps)
            u, v = power_iteration(matrix, u, v, 15, eps, v_first=False)
            self.register_buffer("_u", u)
            self.register_buffer("_v", v)

    def forward(self, weight: Array) -> Array:
        if weight.ndim == 1:
            return normalize(weight, dim=0, eps=self.eps)
        u, v = as_array(self._u), as_array(self._v)
        if self.training:
            u, v = power_iteration(as_matrix(weight, self.dim), u, v, self.n_power_iterations, self.eps, v_first=False)
            self._u, self._v = u, v
        return divided(weight, u, v, self.dim)

    def right_inverse(self, value: Array) -> Array:
        return value


def spectral_norm(module: M, name: str = "weight", n_power_iterations: int = 1, eps: float = 1e-12, dim: int | None = None) -> M:
    """Divide a parameter by its largest singular value (a vector by its length).

    ``w = original / (u^H W v)``. The singular vectors ``u`` and ``v`` are buffers; they follow the weight by a power
    iteration whenever it is read in training mode.

    Args:
        module: the module that holds it.
        name: its name.
        n_power_iterations: how many iterations each reading does.
        eps: the least norm that a vector is divided by.
        dim: the dimension of the outputs; None for 1 in transposed convolutions and 0 elsewhere.

    Raises:
        ValueError: there is no such tensor, or ``n_power_iterations`` is not positive.
        IndexError: ``dim`` is no dimension of it.

    Reference: Miyato et al., Spectral normalization for generative adversarial networks, 2018.
    """
    new = _SpectralNorm(_tensor(module, name), n_power_iterations, output_dim(module, dim), eps)
    return register_parametrization(module, name, new)
