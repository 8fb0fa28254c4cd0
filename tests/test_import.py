"""Importing jnn: without torch, without the extras, and without starting a device."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "matplotlib", "tqdm", "sklearn", "scipy_not_there", "safetensors", "orbax", "pytest"}:
            raise ImportError(name)

sys.meta_path.insert(0, Blocker())
import jnn
import jax._src.xla_bridge as bridge
assert not bridge._backends, "importing jnn has started a device"
import jax, numpy as np
model = jnn.Sequential(jnn.Linear(3, 4), jnn.ReLU())
assert model(np.ones((2, 3), np.float32)).shape == (2, 4)
"""


def test_import_needs_neither_torch_nor_extras():
    subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
