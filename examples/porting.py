"""What people do to models in PyTorch, in jnn: the same lines, each a function that can be run and is tested.

python examples/porting.py
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jnn as nn
import jnn.functional as F


class Net(nn.Module):
    """A small network to work on."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x: jax.Array) -> jax.Array:
        return self.head(self.body(x))


def data() -> tuple[np.ndarray, np.ndarray]:
    """Sixteen points in three classes."""
    x = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(np.int32) + (x[:, 1] > 0)


def loss_fn(model: nn.Module, x: jax.Array, y: jax.Array) -> jax.Array:
    """The loss of all examples here."""
    return F.cross_entropy(model(x), y)


def train(model: nn.Module, steps: int = 20, optimizer: nn.optim.Optimizer | None = None) -> float:
    """A few compiled steps; returns the last loss."""
    step = nn.train_step(loss_fn, optimizer or nn.optim.Optimizer(model, optax.adam(1e-2)))
    return [float(step(*data())) for _ in range(steps)][-1]


def torch_style_loop() -> nn.Module:
    """The training loop of torch: zero the gradients, backward, clip, step."""
    model = Net()
    optimizer = nn.optim.Optimizer(model, optax.sgd(0.1))
    for _ in range(10):
        optimizer.zero_grad()
        nn.backward(loss_fn, model, *data())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


def freezing() -> nn.Module:
    """Train the head only: what does not require gradients is never seen by jax.grad or optax."""
    model = Net()
    model.body.requires_grad_(False)
    train(model)
    return model


def groups() -> nn.Module:
    """Two learning rates, by pattern on parameter names."""
    model = Net()
    train(model, optimizer=nn.optim.Optimizer(model, {"head.*": optax.adam(1e-2), "*": optax.adam(1e-3)}))
    return model


def tying() -> nn.Module:
    """One array under two names: it has one leaf and one gradient, and stays tied."""
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    tokens = np.arange(5)
    step = nn.train_step(loss_fn, nn.optim.Optimizer(model, optax.sgd(0.1)))
    step(tokens, tokens)
    return model


def replacing_a_layer() -> nn.Module:
    """A loaded model gets a new head for five classes."""
    pretrained = Net()
    model = Net()
    model.load_state_dict(pretrained.state_dict())
    model.head = nn.Linear(model.head.in_features, 5)
    train(model)
    return model


class LoRALinear(nn.Linear):
    """LoRA by subclass: a frozen weight and a trained product of two thin matrices."""

    def __init__(self, in_features: int, out_features: int, rank: int = 2) -> None:
        super().__init__(in_features, out_features)
        self.requires_grad_(False)
        self.lora_a = nn.Parameter(jnp.zeros((rank, in_features), self.weight.dtype))
        self.lora_b = nn.Parameter(jnp.zeros((out_features, rank), self.weight.dtype))
        self.lora_a.normal_(std=0.1)

    def forward(self, input: jax.Array) -> jax.Array:
        return super().forward(input) + F.linear(F.linear(input, self.lora_a), self.lora_b)


def lora_by_replacement() -> nn.Module:
    """LoRA in a loaded model: every linear layer is replaced by one that holds its weights."""
    model = Net()
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            adapted = LoRALinear(module.in_features, module.out_features)
            adapted.load_state_dict(module.state_dict(), strict=False)
            model.set_submodule(path, adapted)
    train(model)
    return model


def features_by_hook() -> dict[str, jax.Array]:
    """The output of an inner layer, taken by a hook in an eager call."""
    model, features = Net(), {}
    with model.body[2].register_forward_hook(lambda module, args, output: features.update(body=output)):
        model.eval()(data()[0])
    return features


def ensemble() -> jax.Array:
    """Ten models in one compiled call."""
    models = [Net() for _ in range(10)]
    params, buffers = nn.func.stack_module_state(models)

    @jax.jit
    def run(params: dict, buffers: dict, x: jax.Array) -> jax.Array:
        return jax.vmap(lambda p, b: nn.func.functional_call(models[0], (p, b), (x,)))(params, buffers)

    return run(params, buffers, data()[0])


class Checkpointed(Net):
    """Keeps nothing of the body for the backward pass, which computes it again."""

    def forward(self, x: jax.Array) -> jax.Array:
        return self.head(nn.func.checkpoint(self.body, x))


def rematerialisation() -> float:
    """Memory for time."""
    return train(Checkpointed())


EXAMPLES = [
    torch_style_loop,
    freezing,
    groups,
    tying,
    replacing_a_layer,
    lora_by_replacement,
    features_by_hook,
    ensemble,
    rematerialisation,
]


def main() -> None:
    for example in EXAMPLES:
        result = example()
        lines = (example.__doc__ or "").splitlines()
        print(f"{example.__name__}: {lines[0]}")
        if isinstance(result, nn.Module):
            trained = sum(p.numel() for p in result.parameters() if p.requires_grad)
            print(f"    trains {trained} of {sum(p.numel() for p in result.parameters())} numbers")


if __name__ == "__main__":
    main()
