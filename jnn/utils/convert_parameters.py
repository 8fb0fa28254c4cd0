"""Parameters as one vector and back. For trees of arrays, see ``jax.flatten_util.ravel_pytree``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import checks
from ..module.parameter import Variable


def parameters_to_vector(parameters: Iterable[Any]) -> jax.Array:
    """All elements of Parameters, or arrays, in one vector.

    Raises:
        ValueError: there are none.
    """
    flat = [jnp.ravel(jnp.asarray(p)) for p in parameters]
    checks.require(flat, "parameters_to_vector", "there must be at least one parameter", ValueError)
    return jnp.concatenate(flat)


def vector_to_parameters(vec: Any, parameters: Iterable[Variable]) -> None:
    """Give Parameters the consecutive elements of a vector, in their shapes and its dtype. Elements left over are ignored.

    Raises:
        TypeError: ``vec`` is no array, or a parameter no Parameter.
        RuntimeError: it has too few elements; then nothing has changed.
    """
    who = "vector_to_parameters"
    checks.require(isinstance(vec, (jax.Array, np.ndarray, Variable)), who, "vec must be an array", TypeError, vec=type(vec))
    given = [*parameters]
    for p in given:
        checks.require(isinstance(p, Variable), who, "arrays cannot be changed in place, only Parameters", TypeError, parameter=type(p))
    ends = np.cumsum([0, *(p.size for p in given)]).tolist()
    vector = jnp.ravel(jnp.asarray(vec))
    enough = vector.size >= ends[-1]
    checks.require(enough, who, "vec has too few elements for the parameters", RuntimeError, vec=vector, needed=ends[-1])
    for p, start, end in zip(given, ends, ends[1:]):
        p.data = vector[start:end].reshape(p.shape)
