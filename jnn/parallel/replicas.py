"""The parts of :class:`DataParallel` one by one: copies of a module, and batches cut up and put together."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from ..core import checks
from ..core.function import as_array
from ..module.module import Module
from ..module.parameter import Buffer, Variable
from ..module.structure import clone
from .arrays import local_devices

M = TypeVar("M", bound=Module)


def replicate(network: M, devices: Sequence[Any], detach: bool = False) -> list[M]:
    """Copies of a module, one on each device; what the first writes to its buffers, the module keeps.

    Args:
        devices: numbers of ``jax.local_devices()``, or devices.
        detach: whether the copies' parameters do not require gradients.

    Differs from torch: the copies' parameters are parameters; gradients of one copy stay with it.
    """
    checks.require(isinstance(network, Module), "replicate", "network must be a Module", TypeError, network=type(network))

    def copy_to(device: Any, first: bool) -> M:
        made: dict[int, Variable] = {}

        def convert(variable: Variable) -> Variable:
            if first and isinstance(variable, Buffer):
                return variable
            if id(variable) not in made:
                twin = type(variable).__new__(type(variable))
                twin.__setstate__(variable.__getstate__())
                twin._value, twin._grad = jax.device_put(variable.detach(), device), None
                twin._requires_grad = variable.requires_grad and not detach
                made[id(variable)] = twin
            return made[id(variable)]

        return clone(network, convert)  # type: ignore[return-value]

    found = local_devices("replicate", devices) if len(devices) else []
    return [copy_to(device, first=not i) for i, device in enumerate(found)]


def scatter(inputs: Any, target_gpus: Sequence[Any], dim: int = 0) -> Any:
    """Arrays cut along ``dim`` into one part for each device, the last ones smaller or missing; anything else for each.

    Args:
        inputs: an array, or tuples, lists and dicts of arrays and other things.
        target_gpus: numbers of ``jax.local_devices()``, or devices.

    Returns:
        A tuple of parts of an array; of anything else a list, of what each device is given.
    """
    devices = local_devices("scatter", target_gpus)

    def cut(x: jax.Array) -> tuple[jax.Array, ...]:
        axis = checks.dim("scatter", dim, x.ndim)
        part = max(-(-x.shape[axis] // len(devices)), 1)
        starts = range(0, max(x.shape[axis], 1), part)
        pieces = (jax.lax.slice_in_dim(x, i, min(i + part, x.shape[axis]), axis=axis) for i in starts)
        return tuple(jax.device_put(piece, device) for piece, device in zip(pieces, devices, strict=False))

    def visit(value: Any) -> Any:
        array = as_array(value) if not isinstance(value, list) else value
        if isinstance(array, jax.Array):
            return cut(array)
        if isinstance(value, tuple) and value:
            make = getattr(type(value), "_make", tuple)
            return [make(parts) for parts in zip(*map(visit, value), strict=False)]
        if isinstance(value, list) and value:
            return [list(parts) for parts in zip(*map(visit, value), strict=False)]
        if isinstance(value, Mapping) and value:
            return [type(value)(zip(value, parts, strict=True)) for parts in zip(*map(visit, value.values()), strict=False)]  # type: ignore[call-arg]
        return [value] * len(devices)

    return visit(inputs)


def gather(outputs: Sequence[Any], target_device: Any, dim: int = 0) -> Any:
    """The outputs of several devices as one, arrays joined along ``dim`` on one device; scalars make a vector.

    Args:
        outputs: one for each device: arrays, or tuples, lists and dicts of arrays and None.
        target_device: a number of ``jax.local_devices()``, a device, or ``"cpu"``.

    Raises:
        ValueError: dicts of different keys.
    """
    device = output_device("gather", target_device)

    def join(parts: Sequence[Any]) -> Any:
        first = parts[0]
        if first is None:
            return None
        if isinstance(first, jax.Array):
            if not first.ndim:
                checks.require(dim == 0, "gather", "scalars can only be joined along dimension 0", dim=dim)
                warnings.warn("gather: scalars are joined to a vector", UserWarning, stacklevel=4)
            return jnp.concatenate([jnp.atleast_1d(jax.device_put(part, device)) for part in parts], dim)
        if isinstance(first, Mapping):
            same = all(part.keys() == first.keys() for part in parts)
            checks.require(same, "gather", "dicts must have the same keys", keys=[sorted(map(str, part)) for part in parts])
            return type(first)((key, join([part[key] for part in parts])) for key in first)  # type: ignore[call-arg]
        make = getattr(type(first), "_make", type(first))
        return make(join(each) for each in zip(*parts, strict=True))

    return join(outputs)


def output_device(who: object, device: Any) -> Any:
    """The device of torch's ``output_device``: a number, ``"cpu"`` or -1, or itself."""
    return jax.devices("cpu")[0] if device in ("cpu", -1) else local_devices(who, [device])[0]


def parallel_apply(
    modules: Sequence[Module],
    inputs: Sequence[Any],
    kwargs_tup: Sequence[Mapping[str, Any]] | None = None,
    devices: Sequence[Any] | None = None,
) -> list[Any]:
    """Each module's output for its own inputs. Calls return before they are computed, so the devices work side by side.

    Args:
        modules: modules, each with its state on its own device; see :func:`replicate`.
        inputs: for each a tuple or list of arguments, or one argument; see :func:`scatter`.
        kwargs_tup: keyword arguments for each.
        devices: where each makes new arrays; that of its inputs when None.

    Raises:
        ValueError: there are not equally many of each.
    """
    given = {"modules": modules, "inputs": inputs, "kwargs_tup": kwargs_tup, "devices": devices}
    sizes = {name: len(value) for name, value in given.items() if value is not None}
    if len(set(sizes.values())) != 1:
        checks.fail("parallel_apply", "every module needs its inputs, keyword arguments and device", ValueError, **sizes)
    places = [None] * len(modules) if devices is None else local_devices("parallel_apply", devices)
    outputs = []
    for i, (module, args, device) in enumerate(zip(modules, inputs, places, strict=True)):
        try:
            with jax.default_device(device):
                args = args if isinstance(args, (tuple, list)) else (args,)
                outputs.append(module(*args, **({} if kwargs_tup is None else kwargs_tup[i])))
        except Exception as error:
            error.add_note(f"in replica {i}" + (f" on {device}" if device is not None else ""))
            raise
    return outputs
