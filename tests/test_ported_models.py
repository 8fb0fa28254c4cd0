"""Model files written for torch, run on jnn with only their imports changed."""

from __future__ import annotations

import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import jnn as nn
import jnn.functional as F

MODELS = pathlib.Path(__file__).with_name("models")


def load(name, library):
    """A model file as a module of its own, with ``torch.nn`` replaced by ``library`` in its imports."""
    source = (MODELS / f"{name}.py").read_text().replace("import torch.nn", f"import {library}")
    module = types.ModuleType(f"{name}_on_{library.replace('.', '_')}")
    exec(compile(source, module.__name__, "exec"), module.__dict__)
    return module


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_resnet_follows_torch(kind):
    theirs, mine = getattr(load("resnet", "torch.nn"), kind)(), getattr(load("resnet", "jnn"), kind)()
    assert repr(mine) == repr(theirs)
    mine.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    x = np.random.default_rng(0).standard_normal((6, 3, 16, 16)).astype(np.float32)
    y = np.random.default_rng(1).integers(0, 5, 6)
    tensor = torch.tensor(x)

    np.testing.assert_allclose(mine.eval()(x), theirs.eval()(tensor).detach(), rtol=1e-5, atol=1e-5)
    params, buffers = nn.split(mine)
    logits, _ = jax.jit(nn.pure(mine).apply)(params, buffers, jnp.asarray(x))
    np.testing.assert_allclose(logits, theirs(tensor).detach(), rtol=1e-5, atol=1e-5)

    mine.train(), theirs.train()
    step = nn.train_step(lambda m, x, y: F.cross_entropy(m(x), y), nn.optim.Optimizer(mine, optax.sgd(0.05, momentum=0.9)))
    reference = torch.optim.SGD(theirs.parameters(), 0.05, momentum=0.9)
    for _ in range(5):
        loss = step(x, y)
        reference.zero_grad()
        expected = torch.nn.functional.cross_entropy(theirs(tensor), torch.tensor(y))
        expected.backward()
        reference.step()
        # Float32 rounding is carried from step to step and amplified by batch norm over few values.
        np.testing.assert_allclose(loss, expected.item(), rtol=1e-4, atol=1e-5)
    for name, value in theirs.state_dict().items():
        np.testing.assert_allclose(np.asarray(mine.state_dict()[name]), value.numpy(), rtol=5e-3, atol=5e-4, err_msg=name)
