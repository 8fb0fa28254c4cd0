"""Modules as programs that run without their source, by jax.export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import export as jax_export

from ..core import checks
from ..module.bridge import pure, split
from ..module.module import Module
from .errors import CheckpointError, require
from .reading import Path
from .writing import replacing


def export(
    module: Module,
    example: Any,
    path: Path,
    *,
    shapes: str | Sequence[str | None] = "b, ...",
    constraints: Sequence[str] = (),
    platforms: Sequence[str] | None = None,
) -> None:
    """Write what a module computes in evaluation as a ``jax.export`` artifact, its arrays within.

    :func:`load_exported` runs it, and so does ``jax.export.deserialize``, with neither jnn nor the model's source. The file
    is written whole or not at all.

    Args:
        module: as it is now; its own mode does not count.
        example: an argument of the module, or a tuple of them: arrays or ``jax.ShapeDtypeStruct``.
        path: the file.
        shapes: of each argument, or of all of them, in the notation of ``jax.export``: a name is a size that may differ from
            call to call, ``...`` those of the example. By default that is the first one, the batch. None for the example's.
        constraints: what holds of the open sizes, as ``"length >= 3"``, where the module must know; checked at the calls.
        platforms: what it is to run on, of ``cpu``, ``cuda``, ``rocm`` and ``tpu``; that of now when None.

    Raises:
        CheckpointError: the module computes something that depends on a size that is left open, or the file could not be
            written.
    """
    checks.require(isinstance(module, Module), export.__name__, "module must be a Module", TypeError, module=type(module))
    args = example if isinstance(example, tuple) else (example,)
    per_argument = [shapes] * len(args) if isinstance(shapes, str) else list(shapes)
    checks.require(len(per_argument) == len(args), export.__name__, "there must be a shape for each argument", shapes=per_argument)
    (params, buffers), program = split(module), pure(module)
    scope = jax_export.SymbolicScope(constraints)
    specs = [
        jax.tree.map(lambda x, shape=shape: x if shape is None else _abstract(x, shape, scope), arg)
        for arg, shape in zip(args, per_argument, strict=True)
    ]
    run = jax.jit(lambda *inputs: program.apply(params, buffers, *inputs, train=False)[0])
    try:
        data = jax_export.export(run, platforms=platforms)(*specs).serialize()
    except jax.errors.InconclusiveDimensionOperation as error:
        message = (
            f"export: {type(module).__name__} computes what depends on an open size; give fewer of them in shapes, or constraints: {error}"
        )
        raise CheckpointError(message) from error
    with replacing(path) as beside, open(beside, "wb") as file:
        file.write(data)


def _abstract(x: Any, shape: str, scope: jax_export.SymbolicScope) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jax_export.symbolic_shape(shape, scope=scope, like=x.shape), x.dtype)


def load_exported(path: Path) -> Callable[..., Any]:
    """The function that :func:`export` wrote, compiled once for each size of its arguments.

    An artifact is a program: run those that you trust.

    Raises:
        CheckpointError: the file is no such artifact, or a damaged one.
    """
    with open(path, "rb") as file:
        data = file.read()
    try:
        exported = jax_export.deserialize(bytearray(data))
    except Exception as error:  # what the parser of flatbuffers meets in a damaged file
        raise CheckpointError(f"load_exported: {path} is no artifact of jax.export: {error}") from error
    require(exported.in_tree is not None, load_exported.__name__, "the artifact is damaged", path=str(path))
    return jax.jit(exported.call)
