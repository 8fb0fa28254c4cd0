"""What a function of the library must share with its definition: values, and every derivative."""

from __future__ import annotations

import jax
import numpy as np

from jnn.kernels.platform import lowering

from .oracle import quick_jit

DERIVATIVES = {
    "forward": lambda f: lambda *a: jax.jvp(f, a, a),
    "gradients": lambda f: jax.grad(lambda *a: (f(*a) ** 3).sum(), (0, 1)),
    "twice": lambda f: lambda *a: jax.jvp(jax.grad(lambda *a: (f(*a) ** 3).sum(), (0, 1)), a, a),
    "reverse twice": lambda f: jax.grad(lambda *a: (jax.grad(lambda *a: (f(*a) ** 3).sum(), 0)(*a) ** 2).sum(), (0, 1)),
    "by sample": lambda f: lambda x, w: jax.vmap(jax.grad(lambda *a: (f(*a) ** 3).sum(), (0, 1)), (0, None))(x[:, None] + x[None], w),
    "in loops, computed again": lambda f: jax.grad(
        lambda x, w: jax.lax.scan(lambda c, _: (c + (jax.checkpoint(f)(x + c.mean(), w) ** 3).sum(), None), x.sum(), None, 2)[0], (0, 1)
    ),
}


def same(found, expected, rtol, least=1e-2, message=""):
    """Arrays are the same to ``rtol`` of their greatest number, or of ``least`` more: what cancels has no size to be relative to."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        # By numpy: what JAX compiles for it is forgotten between forms that are compared.
        size = np.abs(b, where=np.isfinite(b), out=np.zeros(np.shape(b))).max(initial=0) + least
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * size, err_msg=message)


def by_both(of, function, definition, arrays, target, rtol):
    """``of`` the library's ``function``, which calls ``target``, is that of its definition."""
    call = jax.jit(of(function)).lower(*arrays)
    assert target in call.as_text()
    same(call.compile()(*arrays), quick_jit(of(definition))(*arrays), rtol)


def derivative_is_xlas(function, name, x, w):
    """The derivative ``name`` of a function of two arrays is the same with the library and without."""

    def run():
        jax.clear_caches()
        return jax.jit(DERIVATIVES[name](function))(x, w)

    found = run()
    with lowering(native=False, library=False):
        same(found, run(), 1e-9)
