"""Values whose derivatives are another's."""

from __future__ import annotations

import jax

Array = jax.Array


@jax.custom_jvp
def straight_through(value: Array, carrier: Array) -> Array:
    """``value``, exactly, with the derivatives of ``carrier``. Both have one shape and dtype."""
    return value


@straight_through.defjvp
def _straight_through_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return straight_through(*primals), tangents[1]
