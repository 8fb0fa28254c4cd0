"""Pure losses: layers whose last step is a reduction."""

from .adaptive_softmax import AdaptiveLogSoftmaxWithLoss as AdaptiveLogSoftmaxWithLoss
from .classification import BCELoss as BCELoss
from .classification import BCEWithLogitsLoss as BCEWithLogitsLoss
from .classification import CrossEntropyLoss as CrossEntropyLoss
from .classification import MultiLabelSoftMarginLoss as MultiLabelSoftMarginLoss
from .classification import NLLLoss as NLLLoss
from .classification import NLLLoss2d as NLLLoss2d
from .ctc import CTCLoss as CTCLoss
from .linear_cross_entropy import LinearCrossEntropyLoss as LinearCrossEntropyLoss
from .linear_cross_entropy import LinearCrossEntropyOptions as LinearCrossEntropyOptions
from .margin import CosineEmbeddingLoss as CosineEmbeddingLoss
from .margin import HingeEmbeddingLoss as HingeEmbeddingLoss
from .margin import MarginRankingLoss as MarginRankingLoss
from .margin import MultiLabelMarginLoss as MultiLabelMarginLoss
from .margin import MultiMarginLoss as MultiMarginLoss
from .margin import SoftMarginLoss as SoftMarginLoss
from .margin import TripletMarginLoss as TripletMarginLoss
from .margin import TripletMarginWithDistanceLoss as TripletMarginWithDistanceLoss
from .regression import GaussianNLLLoss as GaussianNLLLoss
from .regression import HuberLoss as HuberLoss
from .regression import KLDivLoss as KLDivLoss
from .regression import L1Loss as L1Loss
from .regression import MSELoss as MSELoss
from .regression import PoissonNLLLoss as PoissonNLLLoss
from .regression import SmoothL1Loss as SmoothL1Loss
