"""Checkpoints and interchange: torch's files and safetensors without torch, training state, exported programs."""

from .checkpointer import Checkpointer as Checkpointer
from .checkpointer import Restored as Restored
from .errors import CheckpointError as CheckpointError
from .exporting import export as export
from .exporting import load_exported as load_exported
from .load_into import LoadReport as LoadReport
from .load_into import load_into as load_into
from .optimizers import load_torch_optimizer as load_torch_optimizer
from .optimizers import optax_from_torch as optax_from_torch
from .optimizers import optax_state_from_torch as optax_state_from_torch
from .optimizers import optax_state_to_torch as optax_state_to_torch
from .optimizers import torch_optimizer_state as torch_optimizer_state
from .reading import load as load
from .writing import save as save
