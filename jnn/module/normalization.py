"""What modules with running statistics have beside their layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp

from ..core import checks, dtypes
from ..layers.batchnorm import AnyBatchNorm
from .module import Module


class RunningStatistics(Module):
    """Base of the batch and instance normalisations: their statistics can be reset, and old checkpoints loaded."""

    _version = 2
    num_batches_tracked: Any

    def reset_running_stats(self) -> None:
        """Forget all batches: mean 0, variance 1, count 0."""
        for name, value in (("running_mean", 0), ("running_var", 1), ("num_batches_tracked", 0)):
            if self._buffers.get(name) is not None:
                self._buffers[name].fill_(value)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, local_metadata: dict[str, Any], *rest: Any) -> None:
        # Before its version 2, and in a dict that says no version, torch has no num_batches_tracked.
        key = f"{prefix}num_batches_tracked"
        if (local_metadata.get("version") or 0) < 2 and self.num_batches_tracked is not None and key not in state_dict:
            abstract = self.device == "meta"  # type: ignore[attr-defined]
            count = jnp.zeros((), dtypes.index()) if abstract else self.num_batches_tracked
            state_dict = {**state_dict, key: count}
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


class SynchronizedStatistics(RunningStatistics):
    """Base of the synchronised batch normalisation, which others can be converted to."""

    lazy: ClassVar[bool]

    @classmethod
    def convert_sync_batchnorm(cls, module: Module, process_group: Any = None) -> Module:
        """``module`` with every batch normalisation in it made a synchronised one of the same parameters and buffers.

        The module is changed in place and returned; one that is a batch normalisation itself gives a new one.

        Args:
            process_group: that of all of them, see :class:`SyncBatchNorm`.

        Raises:
            ValueError: a lazy batch normalisation does not know its channels yet.
        """
        checks.require(isinstance(module, Module), cls, "module must be a Module", TypeError, module=type(module))
        converted: dict[int, Module] = {}

        def convert(module: Module) -> Module:
            if id(module) not in converted:
                converted[id(module)] = cls._synchronized(module, process_group) if isinstance(module, AnyBatchNorm) else module
                for name, child in module._modules.items():
                    if child is not None and convert(child) is not child:
                        module._modules[name] = convert(child)
            return converted[id(module)]

        return convert(module)

    @classmethod
    def _synchronized(cls, module: Any, process_group: Any) -> Module:
        rule = "a lazy batch normalisation must have been called, or have loaded a state_dict, before it is converted"
        checks.require(not type(module).lazy, cls, rule, ValueError, module=module)
        names = ("num_features", "eps", "momentum", "affine", "track_running_stats", "device", "dtype")
        make: Any = cls
        new = make(**{name: getattr(module, name) for name in names}, process_group=process_group, bias=module.use_bias)
        for registry in ("_parameters", "_buffers"):
            for name, value in getattr(module, registry).items():
                getattr(new, registry)[name] = value
        new.training = module.training
        return new
