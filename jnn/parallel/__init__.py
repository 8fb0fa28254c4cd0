"""One model on many devices."""

from .data_parallel import DataParallel as DataParallel
