"""Random keys: a stream per run, folded by path, and one generator for code that passes no key."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from . import checks


def fold(key: jax.Array, path: str) -> jax.Array:
    """``key`` folded with 64 bits of a hash of ``path``."""
    digest = hashlib.blake2b(path.encode(), digest_size=8).digest()
    for word in np.frombuffer(digest, np.uint32):
        key = jax.random.fold_in(key, word)
    return key


class KeyStream:
    """The keys of one run. The n-th draw at a path depends on nothing but the run's key, the path and n."""

    def __init__(self, key: jax.Array | None) -> None:
        self._key = key
        self._drawn: Counter[str] = Counter()

    def draw(self, who: object, path: str) -> jax.Array:
        if self._key is None:
            where = f" at {path!r}" if path else ""
            checks.fail(who, f"random numbers{where} need a key; pass key= to apply", RuntimeError)
        count = self._drawn[path]
        self._drawn[path] += 1
        return jax.random.fold_in(fold(self._key, path), count)

    def split(self, who: object, path: str, n: int) -> jax.Array | None:
        """``n`` keys drawn at once; None of a stream without a key, whose use will say so."""
        return None if self._key is None else jax.random.split(self.draw(who, path), n)


class Generator:
    """Keys for eager code that passes none: torch's default generator. Reproducible from ``manual_seed``."""

    def __init__(self, seed: int = 0) -> None:
        self.manual_seed(seed)

    def manual_seed(self, seed: int) -> Generator:
        """Start again from ``seed``."""
        self._seed, self._key, self._count = int(seed), None, 0
        return self

    def initial_seed(self) -> int:
        """The seed this generator last started from."""
        return self._seed

    def state(self) -> tuple[jax.Array, np.uint32]:
        """The key and count of the next draw, to be folded inside a compiled call; advances the generator."""
        if self._key is None:
            with jax.ensure_compile_time_eval():
                self._key = jax.random.key(self._seed)
        self._count += 1
        return self._key, np.uint32(self._count - 1)

    def draw(self, who: object) -> jax.Array:
        if _staging():
            checks.fail(who, "random numbers inside a jax trace need a key; pass key=, or run the model by jnn.pure", RuntimeError)
        return jax.random.fold_in(*self.state())


def _staging() -> bool:
    """Whether operations on constants are being recorded rather than run, as under jit."""
    return isinstance(jnp.add(np.float32(0), np.float32(0)), Tracer)


class _Scope(NamedTuple):
    stream: KeyStream
    path: str


_scope: ContextVar[_Scope | None] = ContextVar("jnn_key_scope", default=None)
default_generator = Generator()


@contextmanager
def scope(stream: KeyStream, path: str) -> Iterator[None]:
    """Let functions called inside draw from ``stream`` at ``path``."""
    token = _scope.set(_Scope(stream, path))
    try:
        yield
    finally:
        _scope.reset(token)


def next_key(who: object, key: jax.Array | None = None) -> jax.Array:
    """``key`` if given, else the next of the running call's stream, else the next of the default generator."""
    if key is not None:
        return key
    running = _scope.get()
    return default_generator.draw(who) if running is None else running.stream.draw(who, running.path)


def manual_seed(seed: int) -> Generator:
    """Seed the generator behind module construction and eager random functions; returns it.

    Differs from torch: the numbers drawn are JAX's (threefry), not torch's.
    """
    return default_generator.manual_seed(seed)
