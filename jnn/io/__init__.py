"""Checkpoints and interchange: torch's files and safetensors without torch, training state, exported programs."""

from .errors import CheckpointError as CheckpointError
from .reading import load as load
from .writing import save as save
from .load_into import LoadReport as LoadReport
from .load_into import load_into as load_into
from .checkpointer import Checkpointer as Checkpointer
from .checkpointer import Restored as Restored
