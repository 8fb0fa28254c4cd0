"""One model on many devices."""

from .analysis import collectives as collectives
from .arrays import shard_batch as shard_batch
from .data_parallel import DataParallel as DataParallel
from .data_parallel import data_parallel as data_parallel
from .distributed import DistributedDataParallel as DistributedDataParallel
from .distributed import DistributedDataParallelCPU as DistributedDataParallelCPU
from .distributed import initialize as initialize
from .placement import Placement as Placement
from .placement import train_step as train_step
from .replicas import gather as gather
from .replicas import parallel_apply as parallel_apply
from .replicas import replicate as replicate
from .replicas import scatter as scatter
from .sharding import fsdp as fsdp
from .sharding import init_sharded as init_sharded
from .sharding import shard as shard
from .sharding import shardings as shardings
