"""The examples of porting do what they say."""

from __future__ import annotations

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jnn as nn

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))
import porting


def losses(model):
    return float(porting.loss_fn(model, *porting.data()))


def test_the_loop_learns():
    nn.manual_seed(0)
    before = losses(porting.Net())
    nn.manual_seed(0)
    assert losses(porting.torch_style_loop()) < before


def test_frozen_layers_stay_and_the_head_moves():
    nn.manual_seed(0)
    start = porting.Net()
    nn.manual_seed(0)
    trained = porting.freezing()
    np.testing.assert_array_equal(trained.body[0].weight, start.body[0].weight)
    assert not np.array_equal(trained.head.weight, start.head.weight)


def test_ties_replacement_and_lora():
    tied = porting.tying()
    assert tied[0].weight is tied[1].weight
    assert porting.replacing_a_layer()(porting.data()[0]).shape == (16, 5)
    model = porting.lora_by_replacement()
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained == [f"{m}.lora_{k}" for m in ("body.0", "body.2", "head") for k in "ab"]
    assert np.asarray(model.head.lora_b).any()


def test_features_groups_and_ensembles():
    assert porting.features_by_hook()["body"].shape == (16, 8)
    assert losses(porting.groups()) < 1.2
    assert porting.ensemble().shape == (10, 16, 3)


def test_checkpoint_changes_no_number_and_writes_buffers_once():
    class Plain(nn.Module):
        def __init__(self, keep):
            super().__init__()
            self.keep = keep
            self.block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))

        def forward(self, x):
            return self.block(x) if self.keep else nn.func.checkpoint(self.block, x)

    plain, light = Plain(True), Plain(False)
    light.load_state_dict(plain.state_dict())
    results = []
    for model in (plain, light):
        nn.manual_seed(3)
        results.append(nn.value_and_grad(porting.loss_fn)(model, *porting.data()))
        results[-1] += (nn.split(model)[1],)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *results)
    assert int(light.block[1].num_batches_tracked) == 1
    params, buffers = nn.split(light)
    program = str(jax.make_jaxpr(lambda p: nn.pure(light).apply(p, buffers, jnp.ones((2, 4), jnp.float32))[0])(params))
    assert "checkpoint" in program or "remat" in program
    with pytest.raises(TypeError, match="checkpoint: the first argument must be a Module"):
        nn.func.checkpoint(3)
