"""``DataParallel``: one module on all local devices of one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, PartitionSpec

from ..core import checks, rng, spread
from ..layers.batchnorm import SyncBatchNorm
from ..module.module import Module
from ..module.structure import clone
from .arrays import local_devices
from .replicas import output_device as find_output_device

AXIS = "data"


class DataParallel(Module):
    """Splits the batch over local devices, runs the module on each part, and joins the outputs.

    Every device computes with the same parameters, so gradients are those of the joined outputs. Each has batch
    statistics, but for a ``SyncBatchNorm``, and random numbers of its own; the buffers of the first are kept. Calls are
    compiled.

    Shape: of the module's inputs and outputs, split and joined along ``dim``. Arrays of fewer dimensions, and what is no
        array, go to every device whole; an output that is a scalar becomes one number a device.

    Args:
        module: the module.
        device_ids: which of ``jax.local_devices()``, as numbers or devices; all when None.
        output_device: where the outputs of a plain call are gathered: a number, a device, or ``"cpu"``. None: they stay
            spread over the devices, as one array each.
        dim: the batch dimension.

    Raises:
        ValueError: no such device; at the call, no array to split, or arrays of different batch sizes.

    Differs from torch: a batch that the devices do not divide is split as torch does, but run on one device, part by part;
        whole, where a ``SyncBatchNorm`` is trained.
    """

    def __init__(self, module: Module, device_ids: Sequence[Any] | None = None, output_device: Any = None, dim: int = 0) -> None:
        super().__init__()
        checks.require(isinstance(module, Module), self, "module must be a Module", TypeError, module=type(module))
        self.device_ids = tuple(jax.local_devices().index(device) for device in local_devices(self, device_ids))
        if output_device is not None:
            find_output_device(self, output_device)  # refused here, not at the call
        self.output_device = output_device
        self.dim, self.module = checks.integer(self, "dim", dim, 0), module
        self.compile()

    def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
        output = super().__call__(*inputs, **kwargs)
        traced = self._bound is not None or any(isinstance(x, Tracer) for x in jax.tree.leaves(output))
        return output if traced or self.output_device is None else jax.device_put(output, find_output_device(self, self.output_device))

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """The joined outputs of the module."""
        if len(self.device_ids) == 1:
            return self.module(*inputs, **kwargs)
        leaves, treedef = jax.tree.flatten((inputs, kwargs))
        parted = [isinstance(x, (jax.Array, np.ndarray)) and x.ndim > self.dim for x in leaves]
        sizes = {x.shape[self.dim] for x, part in zip(leaves, parted, strict=True) if part}
        checks.require(len(sizes) == 1, self, "the inputs must have one batch size", sizes=sorted(sizes))
        size, wanted = sizes.pop(), len(self.device_ids)
        part = max(-(-size // wanted), 1)
        count = max(-(-size // part), 1)
        call = _Call(self.module, [x for x, p in zip(leaves, parted, strict=True) if not p], parted, treedef)
        keys = None if self._bound is None else self._bound.stream.split(self, self._bound.path, count)
        arrays = [jnp.asarray(x) for x, p in zip(leaves, parted, strict=True) if p]
        run = self._on_mesh if count == wanted and size == part * count else self._in_turn
        output, buffers = run(call, call.state, keys, arrays, part, count)
        call.write(buffers)
        return output

    def _on_mesh(self, call: _Call, state: Any, keys: Any, arrays: Any, part: int, count: int) -> Any:
        mesh = Mesh(np.array(local_devices(self, self.device_ids)), (AXIS,))
        split, first = PartitionSpec(*[None] * self.dim, AXIS), PartitionSpec(AXIS)

        def run(state: Any, keys: Any, arrays: Any) -> Any:
            with spread.over(spread.Spread((AXIS,), (count,), True)):
                output, buffers = call(state, None if keys is None else keys[0], arrays)
            return jax.tree.map(self._joinable, output), [b[None] for b in buffers]

        sharded = jax.shard_map(run, mesh=mesh, in_specs=(PartitionSpec(), first, split), out_specs=(split, first), check_vma=False)
        output, buffers = sharded(state, keys, arrays)
        return output, [b[0] for b in buffers]

    def _in_turn(self, call: _Call, state: Any, keys: Any, arrays: Any, part: int, count: int) -> Any:
        if any(isinstance(m, SyncBatchNorm) and m.training for m in self.module.modules()):
            with spread.over(spread.Spread((AXIS,), (1,), False)):
                return call(state, None if keys is None else keys[0], arrays)
        runs = []
        for i in range(count):
            pieces = [jax.lax.slice_in_dim(x, i * part, min((i + 1) * part, x.shape[self.dim]), axis=self.dim) for x in arrays]
            runs.append(call(state, None if keys is None else keys[i], pieces))
        outputs = [jax.tree.map(self._joinable, output) for output, _ in runs]
        return jax.tree.map(lambda *parts: jnp.concatenate(parts, self.dim), *outputs), runs[0][1]

    def _joinable(self, x: Any) -> Any:
        return x if x.ndim > self.dim else jnp.expand_dims(x, tuple(range(x.ndim, self.dim + 1)))


class _Call:
    """A call of a bound module as a function of its arrays, a key, and the split inputs."""

    def __init__(self, module: Module, whole: list[Any], parted: list[bool], treedef: Any) -> None:
        self._module, self._whole, self._parted, self._treedef = module, whole, parted, treedef
        held = [v for m in module.modules() for v in (*m._parameters.values(), *m._buffers.values()) if v is not None]
        self._place = {id(v): i for i, v in enumerate({id(v): v for v in held}.values())}
        self.state = list({id(v): v for v in held}.values())

    def __call__(self, state: list[Any], key: Any, arrays: list[Any]) -> tuple[Any, list[Any]]:
        """``(output, buffers)``."""
        twin = clone(self._module, lambda v: state[self._place[id(v)]], (rng.KeyStream(key), None))
        feed, rest = iter(arrays), iter(self._whole)
        args, kwargs = jax.tree.unflatten(self._treedef, [next(feed) if p else next(rest) for p in self._parted])
        output = twin(*args, **kwargs)
        return output, [b for m in twin.modules() for b in m._buffers.values() if b is not None]

    def write(self, buffers: list[Any]) -> None:
        """Keep buffers that a call has returned."""
        feed = iter(buffers)
        for module in self._module.modules():
            for name, value in module._buffers.items():
                if value is not None:
                    module._buffers[name] = next(feed)


def data_parallel(
    module: Module,
    inputs: Any,
    device_ids: Sequence[Any] | None = None,
    output_device: Any = None,
    dim: int = 0,
    module_kwargs: dict[str, Any] | None = None,
) -> Any:
    """The output of ``DataParallel(module, device_ids, output_device, dim)`` for ``inputs``, an argument or a tuple of them."""
    args = inputs if isinstance(inputs, tuple) else () if inputs is None else (inputs,)
    return DataParallel(module, device_ids, output_device, dim)(*args, **(module_kwargs or {}))
