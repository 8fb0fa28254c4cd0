import itertools
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import numpy as np
import pytest
import torch

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Compiling is most of what the suite does; the cache lets a second run, and the second worker, do without.
jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
torch.set_num_threads(1)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def quick_compilation():
    """Let XLA optimise little, for tests of many small programs of which others see what is optimised."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def pytest_addoption(parser):
    parser.addoption("--every-case", action="store_true", help="run every case of torch's databases, not an even selection of each")


@pytest.fixture(autouse=True)
def _seed():
    import jnn

    jnn.manual_seed(0)
    torch.manual_seed(0)


_finished = itertools.count(1)


def pytest_runtest_teardown():
    """Let go of compiled programs now and then: thousands of them would fill the memory."""
    if next(_finished) % 250 == 0:
        jax.clear_caches()


def pytest_terminal_summary(terminalreporter):
    """Count the properties that the table says do not hold, so that none hides."""
    from .cases import cases

    count = sum(len(case.unlike) for case in cases())
    terminalreporter.write_line(f"{len(cases())} rows in the table; {count} properties set aside, each with its reason")
