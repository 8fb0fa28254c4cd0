"""torch.nn on JAX."""

from . import func as func
from . import functional as functional
from . import layers as layers
from . import losses as losses
from . import optim as optim
from .core.rng import manual_seed as manual_seed
from .module.bridge import pure as pure
from .module.bridge import split as split
from .module.bridge import update as update
from .module.catalogue import Identity as Identity
from .module.catalogue import Linear as Linear
from .module.catalogue import MSELoss as MSELoss
from .module.containers import ModuleDict as ModuleDict
from .module.containers import ModuleList as ModuleList
from .module.containers import Sequential as Sequential
from .module.module import Module as Module
from .module.parameter import Buffer as Buffer
from .module.parameter import Parameter as Parameter
from .module.training import backward as backward
from .module.training import train_step as train_step
from .module.training import value_and_grad as value_and_grad
