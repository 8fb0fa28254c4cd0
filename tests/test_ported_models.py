"""Model files written for torch, run on jnn with only their imports changed."""

from __future__ import annotations

import pathlib
import re
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
RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((6, 3, 16, 16)).astype(np.float32)
LENGTHS = [4, 7, 2]
WORDS = np.array([[RNG.integers(1, 13) if t < n else 0 for t in range(7)] for n in LENGTHS])


def load(name, library):
    """A model file as a module of its own, with ``torch.nn`` and ``torch`` replaced in its imports where ``library`` is jnn."""
    source = (MODELS / f"{name}.py").read_text()
    if library == "jnn":
        source = source.replace("torch.nn", "jnn")
        source = re.sub(r"^import torch$", "import jax.numpy as torch", source, flags=re.MULTILINE)
    module = types.ModuleType(f"{name}_on_{library}")
    exec(compile(source, module.__name__, "exec"), module.__dict__)
    return module


pytestmark = pytest.mark.usefixtures("quick_compilation")

CASES = {
    "resnet basic": ("resnet", "basic", (IMAGES,), RNG.integers(0, 5, 6)),
    "resnet bottleneck": ("resnet", "bottleneck", (IMAGES,), RNG.integers(0, 5, 6)),
    "mobilenet": ("mobilenet", "MobileNet", (IMAGES,), RNG.integers(0, 4, 6)),
    "unet": ("unet", "UNet", (IMAGES[:2, :1, :13, :14],), RNG.integers(0, 3, (2, 13, 14))),
    "gpt": ("gpt", "GPT", (RNG.integers(0, 11, (3, 6)),), RNG.integers(0, 11, (3, 6))),
    "tagger": ("tagger", "Tagger", (WORDS, LENGTHS), np.where(WORDS > 0, RNG.integers(0, 5, WORDS.shape), -100)),
}


def class_dim_second(logits):
    """Logits with classes last as cross_entropy wants them."""
    return logits if logits.ndim != 3 else logits.swapaxes(1, 2)


@pytest.mark.parametrize("case", CASES)
def test_model_follows_torch(case):
    file, name, inputs, target = CASES[case]
    theirs, mine = getattr(load(file, "torch"), name)(), getattr(load(file, "jnn"), name)()
    assert repr(mine) == repr(theirs)
    assert [*mine.state_dict()] == [*theirs.state_dict()]
    mine.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    torch_inputs = [torch.tensor(x) for x in inputs]
    target_t = torch.tensor(target)

    expected = theirs.eval()(*torch_inputs).detach()
    np.testing.assert_allclose(mine.eval()(*inputs), expected, rtol=1e-5, atol=1e-5)
    params, buffers = nn.split(mine)
    fixed = inputs[1:]
    logits, _ = jax.jit(lambda p, b, x: nn.pure(mine).apply(p, b, x, *fixed))(params, buffers, jnp.asarray(inputs[0]))
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)

    def loss_fn(m, x, y):
        return F.cross_entropy(class_dim_second(m(x, *fixed)), y)

    mine.train(), theirs.train()
    reference = torch.optim.SGD(theirs.parameters(), 0.05, momentum=0.9)
    step = nn.train_step(loss_fn, nn.optim.Optimizer(mine, optax.sgd(0.05, momentum=0.9)))
    for i in range(5):
        if i == 0:
            grads = nn.core.tree.flatten(nn.value_and_grad(loss_fn)(mine, inputs[0], target)[1])
            # The call above moved the running statistics once, so torch's forward runs once more as well.
            theirs(*torch_inputs)
        loss = step(inputs[0], target)
        reference.zero_grad()
        expected = torch.nn.functional.cross_entropy(class_dim_second(theirs(*torch_inputs)), target_t)
        expected.backward()
        if i == 0:
            for key, p in theirs.named_parameters():
                np.testing.assert_allclose(grads[key], p.grad, rtol=1e-3, atol=1e-5, err_msg=key)
        reference.step()
        # Float32 rounding is carried from step to step and amplified by batch norm over few values.
        np.testing.assert_allclose(loss, expected.item(), rtol=1e-4, atol=1e-5)
    for key, value in theirs.state_dict().items():
        np.testing.assert_allclose(np.asarray(mine.state_dict()[key]), value.numpy(), rtol=5e-3, atol=5e-4, err_msg=key)
