"""torch.nn.functional's names."""

from .layers.linear import linear as linear
from .losses.regression import mse_loss as mse_loss
