"""torch.nn.functional's names."""

from .layers.batchnorm import batch_norm as batch_norm
from .layers.batchnorm import instance_norm as instance_norm
from .layers.conv import conv1d as conv1d
from .layers.conv import conv2d as conv2d
from .layers.conv import conv3d as conv3d
from .layers.conv import conv_tbc as conv_tbc
from .layers.conv import conv_transpose1d as conv_transpose1d
from .layers.conv import conv_transpose2d as conv_transpose2d
from .layers.conv import conv_transpose3d as conv_transpose3d
from .layers.linear import linear as linear
from .layers.normalization import layer_norm as layer_norm
from .layers.padding import pad as pad
from .losses.classification import binary_cross_entropy_with_logits as binary_cross_entropy_with_logits
from .losses.classification import cross_entropy as cross_entropy
from .losses.classification import nll_loss as nll_loss
from .losses.regression import l1_loss as l1_loss
from .losses.regression import mse_loss as mse_loss
