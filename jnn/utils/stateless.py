"""torch's older name of ``jnn.func.functional_call``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from ..module import bridge
from ..module.module import Module


def functional_call(
    module: Module,
    parameters_and_buffers: Mapping[str, Any],
    args: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    tie_weights: bool = True,
    strict: bool = False,
) -> Any:
    """Call a module with some of its parameters and buffers replaced; deprecated, use ``jnn.func.functional_call``."""
    warnings.warn("functional_call: jnn.utils.stateless is deprecated, use jnn.func.functional_call", FutureWarning, stacklevel=2)
    return bridge.functional_call(module, parameters_and_buffers, args, kwargs, tie_weights=tie_weights, strict=strict)
