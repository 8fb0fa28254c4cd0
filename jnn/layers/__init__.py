"""Pure layers: hashable descriptions with ``init`` and ``apply``."""

from .container import ModuleDict as ModuleDict
from .container import ModuleList as ModuleList
from .container import Sequential as Sequential
from .linear import Identity as Identity
from .linear import Linear as Linear
