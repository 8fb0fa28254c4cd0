"""What modules with running statistics have beside their layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from ..core import dtypes
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
