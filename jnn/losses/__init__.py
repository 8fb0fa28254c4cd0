"""Pure losses: layers whose last step is a reduction."""

from .classification import BCEWithLogitsLoss as BCEWithLogitsLoss
from .classification import CrossEntropyLoss as CrossEntropyLoss
from .classification import NLLLoss as NLLLoss
from .regression import L1Loss as L1Loss
from .regression import MSELoss as MSELoss
