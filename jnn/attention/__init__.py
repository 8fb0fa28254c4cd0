"""How scaled dot product attention is computed, as torch.nn.attention."""

from ..kernels.attention import SDPBackend as SDPBackend
from ..kernels.attention import sdpa_kernel as sdpa_kernel
from . import bias as bias
