"""Several processes: ``initialize`` and ``DistributedDataParallel``."""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ..core import checks, spread
from ..module.module import Module
from ..module.structure import structure
from . import arrays as placed
from .placement import Placement

AXIS = "data"
# What jnn.parallel.launch tells the processes that it starts, beside JAX_COORDINATOR_ADDRESS.
COUNT, INDEX, CONNECT, HEARTBEAT = "JNN_PROCESS_COUNT", "JNN_PROCESS_INDEX", "JNN_CONNECT_SECONDS", "JNN_HEARTBEAT_SECONDS"


def initialize(**options: Any) -> bool:
    """Join the processes of one run; call it first, before anything uses a device. Does nothing the second time.

    Under ``python -m jnn.parallel.launch`` this has been done before the script starts. Elsewhere it is
    ``jax.distributed.initialize``, which knows SLURM, Open MPI, Kubernetes and cloud TPUs; where it finds none, and
    ``options`` name no coordinator, this is the only process.

    Args:
        options: those of ``jax.distributed.initialize``, instead of what is found.

    Returns:
        Whether there is a run to join.
    """
    if jax.distributed.is_initialized():
        return True
    if not options and COUNT in os.environ:
        jax.distributed.initialize(
            num_processes=int(os.environ[COUNT]),
            process_id=int(os.environ[INDEX]),
            cluster_detection_method="deactivate",
            initialization_timeout=int(os.environ[CONNECT]),
            heartbeat_timeout_seconds=int(os.environ[HEARTBEAT]),
        )
        return True
    try:
        jax.distributed.initialize(**options)
    except ValueError as error:
        if options or "coordinator_address should be defined" not in str(error):
            raise
        return False
    return True


class _Synchronization:
    """Whether gradients are averaged now, and whether some were accumulated that were not."""

    def __init__(self) -> None:
        self.on, self.owing = True, False


class DistributedDataParallel(Module):
    """A model that several processes train together, each on rows of its own.

    ``jnn.backward``, ``jnn.value_and_grad`` and ``jnn.train_step`` of this module average the gradients over all devices of
    all processes, once, inside the compiled call; the loss they return is averaged too. All processes must make the same
    calls in the same order with equally many rows, which a process's devices divide. A plain call computes on this process
    alone. Parameters and buffers are those of the first process when this is made.

    Args:
        module: the model; it must be the same in all processes.
        device_ids: which of ``jax.local_devices()`` compute, equally many in each process; all when None.
        output_device: accepted; an output is where the module has computed it.
        dim: the batch dimension, 0.
        broadcast_buffers: whether all take the buffers of the first device after a step; True when None. Else each process
            keeps those of its own first device.
        init_sync: whether to check that the models are the same, and to take the first process's values.
        process_group: the name of the axis that batches are spread over, for ``SyncBatchNorm`` and collectives.
        find_unused_parameters: accepted; a parameter that the loss does not depend on has a zero gradient.
        bucket_cap_mb, bucket_cap_mb_list, batched_grad_copy, check_reduction, gradient_as_bucket_view, static_graph,
            skip_all_reduce_unused_params: accepted; XLA schedules the communication.
        delay_all_reduce_named_params, param_to_hook_all_reduce, mixed_precision, device_mesh: only None; layers have
            ``dtype=``, and ``jnn.parallel.train_step`` a mesh.
        forward_sync_buffers: ``broadcast_buffers`` under its new name, which counts.

    Raises:
        RuntimeError: the models differ, with the first difference; there is nothing to train; a gradient of it is taken in
            a program that knows nothing of the other processes.
        ValueError: no such device.
        NotImplementedError: an argument that can only be None.

    Differs from torch: gradients are those of a whole step, not of parts of one in different calls; communication hooks,
    ``join`` and mixed precision are not offered, see ``jnn.parallel.train_step`` for uneven batches.
    """

    def __init__(
        self,
        module: Module,
        device_ids: Sequence[Any] | None = None,
        output_device: Any = None,
        dim: int = 0,
        broadcast_buffers: bool | None = None,
        init_sync: bool = True,
        process_group: str | None = None,
        bucket_cap_mb: float | None = None,
        find_unused_parameters: bool = False,
        check_reduction: bool = False,
        gradient_as_bucket_view: bool = False,
        static_graph: bool = False,
        delay_all_reduce_named_params: Any = None,
        param_to_hook_all_reduce: Any = None,
        mixed_precision: Any = None,
        device_mesh: Any = None,
        skip_all_reduce_unused_params: bool = False,
        bucket_cap_mb_list: list[int] | None = None,
        batched_grad_copy: bool = False,
        forward_sync_buffers: bool | None = None,
    ) -> None:
        super().__init__()
        checks.require(isinstance(module, Module), self, "module must be a Module", TypeError, module=type(module))
        refused = {
            "delay_all_reduce_named_params": delay_all_reduce_named_params,
            "param_to_hook_all_reduce": param_to_hook_all_reduce,
            "mixed_precision": mixed_precision,
            "device_mesh": device_mesh,
        }
        for name, value in refused.items():
            checks.require(value is None, self, f"{name} can only be None", NotImplementedError, **{name: value})
        checks.require(dim == 0, self, "batches are split along dimension 0", dim=dim)
        trained = any(p.requires_grad for p in module.parameters())
        checks.require(trained, self, "the module must have a parameter that requires a gradient", RuntimeError)
        self.module, self.output_device, self.dim = module, output_device, dim
        self.device_ids = tuple(jax.local_devices().index(d) for d in placed.local_devices(self, device_ids))
        self.process_group = AXIS if process_group is None else process_group
        given = [flag for flag in (forward_sync_buffers, broadcast_buffers) if flag is not None]
        self.broadcast_buffers = bool(given[0]) if given else True
        self.find_unused_parameters = bool(find_unused_parameters)
        self._synchronization = _Synchronization()
        if init_sync:
            self._synchronize()

    @property
    def _everywhere(self) -> Placement:
        return _make_placement(self.process_group, self.device_ids, self.broadcast_buffers, range(jax.process_count()))

    @property
    def _here(self) -> Placement:
        here = jax.process_index()
        return _make_placement(self.process_group, self.device_ids, True, range(here, here + 1))

    def _synchronize(self) -> None:
        """Refuse another structure than the first process's, and take its values."""
        now = structure(self.module)
        variables = [*now.params.values(), *now.held.values()]
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils  # which imports much

            _require_same(self, _description(self.module))
            values = multihost_utils.broadcast_one_to_all([np.asarray(v.detach()) for v in variables])
            for variable, value in zip(variables, values, strict=True):
                variable.data = value.astype(variable.dtype)
        for variable in variables:
            variable.data = placed.to_here(variable.detach(), self._here.mesh)

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """The module's output for this process's inputs."""
        alone = self._bound is not None and spread.running() is None
        if alone and self.training and self._everywhere.mesh.size > 1:
            rule = (
                "train it as the model of jnn.backward, jnn.value_and_grad or jnn.train_step itself; elsewhere gradients are not averaged"
            )
            checks.fail(self, rule, RuntimeError)
        return self.module(*inputs, **kwargs)

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Accumulate gradients of this process alone; the first ``jnn.backward`` after it averages the sums."""
        state = self._synchronization
        was, state.on = state.on, False
        try:
            yield
        finally:
            state.on = was

    def _placement(self, who: str) -> Placement:
        state = self._synchronization
        if not state.on:
            checks.require(who != "train_step", self, "a step inside no_sync() would part the processes", RuntimeError)
            return self._here
        return self._here if state.owing and who == "backward" else self._everywhere

    def _accumulated(self) -> None:
        state = self._synchronization
        if not state.on:
            state.owing = True
        elif state.owing:
            state.owing = False
            params = [p for p in structure(self).params.values() if p.grad is not None]
            for parameter, grad in zip(params, self._everywhere.average([p.grad for p in params]), strict=True):
                parameter.grad = grad


@functools.lru_cache(maxsize=64)
def _make_placement(axis: str, device_ids: tuple[int, ...], broadcast_buffers: bool, processes: range) -> Placement:
    """On the same devices of each of the processes."""
    by_process = [jax.local_devices(process_index=process) for process in processes]
    chosen = [devices[i] for devices in by_process for i in device_ids]
    return Placement(Mesh(np.array(chosen), (axis,)), axis, broadcast_buffers=broadcast_buffers)


class DistributedDataParallelCPU(DistributedDataParallel):
    """Deprecated name of :class:`DistributedDataParallel`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        warnings.warn("DistributedDataParallelCPU is called DistributedDataParallel now", FutureWarning, stacklevel=2)
        super().__init__(*args, **kwargs)


def _description(module: Module) -> list[str]:
    """What must be the same in all processes, a line for each module, parameter and buffer."""
    lines = [f"{path or 'the model'}: {type(m).__name__}({m.extra_repr()})" for path, m in module.named_modules()]
    for kind, variables in (("parameter", module.named_parameters()), ("buffer", module.named_buffers())):
        for name, v in variables:
            lines.append(f"{kind} {name}: {v.dtype}{list(v.shape)}{'' if v.requires_grad or kind == 'buffer' else ', frozen'}")
    return lines


def _require_same(who: object, lines: list[str]) -> None:
    from jax.experimental import multihost_utils

    text = np.frombuffer("\n".join(lines).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(text.size))
    texts = multihost_utils.process_allgather(np.pad(text, (0, int(sizes.max()) - text.size)))
    everyone = [bytes(row[:size]).decode().split("\n") for row, size in zip(texts, sizes, strict=True)]
    for process, theirs in enumerate(everyone):
        if theirs != everyone[0]:
            at = next((i for i, (a, b) in enumerate(zip(everyone[0], theirs, strict=False)) if a != b), min(len(everyone[0]), len(theirs)))
            first, other = (found[at] if at < len(found) else "nothing more" for found in (everyone[0], theirs))
            checks.fail(who, f"process {process} has another model than process 0: {other!r}, not {first!r}", RuntimeError)
