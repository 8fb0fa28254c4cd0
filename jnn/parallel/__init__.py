"""One model on many devices."""

from .arrays import shard_batch as shard_batch
from .data_parallel import DataParallel as DataParallel
from .distributed import DistributedDataParallel as DistributedDataParallel
from .distributed import DistributedDataParallelCPU as DistributedDataParallelCPU
from .distributed import initialize as initialize
from .placement import Placement as Placement
from .placement import train_step as train_step
