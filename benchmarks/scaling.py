"""What a training step computes and sends on 8 to 4,096 devices, read from compiled programs; no step is run.

    python benchmarks/scaling.py [--model resnet50 | transformer]

Programs are compiled for virtual CPU devices from abstract shapes, so that no weight is ever in memory. XLA's CPU client has
at most 2,048 devices; a step on more is that on 2,048, which the table shows to be that on 8 in what it computes and sends. Of
the transformer one and two layers are compiled, and the difference counts for each further one. Times are these numbers over
the speeds given as options, which are assumptions. docs/scaling.md has the output and what it says.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jnn as nn
import jnn.functional as F
from jnn import parallel
from jnn.attention import SDPBackend, sdpa_kernel

MOST_DEVICES = 2048
MOST_SHARDED = 64  # XLA takes many minutes to compile a sharded step for more
META = {"device": "meta"}


class Bottleneck(nn.Module):
    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        out = 4 * planes
        self.conv1, self.bn1 = nn.Conv2d(channels, planes, 1, bias=False, **META), self.norm(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False, **META), self.norm(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, out, 1, bias=False, **META), self.norm(out)
        same = stride == 1 and channels == out
        self.shortcut = nn.Identity() if same else nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False, **META), self.norm(out))

    @staticmethod
    def norm(channels: int) -> nn.Module:
        return nn.SyncBatchNorm(channels, process_group="data", **META)

    def forward(self, x: jax.Array) -> jax.Array:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


def resnet50() -> nn.Module:
    """He et al. 2015, with synchronised batch normalisation."""
    blocks, channels = [], 64
    for planes, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(count):
            blocks.append(Bottleneck(channels, planes, stride if i == 0 else 1))
            channels = 4 * planes
    stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False, **META), Bottleneck.norm(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000, **META))


class Block(nn.Module):
    """Attention and a gated layer, of LLaMA 7B's sizes."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width, **META), nn.RMSNorm(width, **META)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False, **META), nn.Linear(width, width, bias=False, **META)
        self.gate, self.up = nn.Linear(width, hidden, bias=False, **META), nn.Linear(width, hidden, bias=False, **META)
        self.down = nn.Linear(hidden, width, bias=False, **META)

    def forward(self, x: jax.Array) -> jax.Array:
        n, length, width = x.shape
        q, k, v = jnp.moveaxis(self.qkv(self.norm1(x)).reshape(n, length, 3, self.heads, -1), (2, 3), (0, 2))
        x = x + self.out(jnp.swapaxes(F.scaled_dot_product_attention(q, k, v, is_causal=True), 1, 2).reshape(n, length, width))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def transformer(layers: int, width: int = 4096, heads: int = 32, hidden: int = 11008, words: int = 32000) -> nn.Module:
    blocks = (Block(width, heads, hidden) for _ in range(layers))
    return nn.Sequential(
        nn.Embedding(words, width, **META), *blocks, nn.RMSNorm(width, **META), nn.Linear(width, words, bias=False, **META)
    )


class Cost(NamedTuple):
    """Of one step on one device."""

    flops: float
    sent: Counter[str]  # bytes of results, by kind of collective
    count: int  # of collectives
    parameters: int

    def and_more(self, one: Cost, times: int) -> Cost:
        """With ``times`` times the difference to the cost of one layer less."""
        kinds = {kind: self.sent[kind] + times * (self.sent[kind] - one.sent[kind]) for kind in self.sent}
        numbers = (a + times * (a - b) for a, b in ((self.flops, one.flops), (self.count, one.count), (self.parameters, one.parameters)))
        flops, count, parameters = numbers
        return Cost(flops, Counter(kinds), int(count), int(parameters))


def cost_of(model: nn.Module, batch: tuple[Any, ...], mesh: Mesh, sharded: bool) -> Cost:
    """Of a step of Adam: data parallel as ``jnn.parallel.train_step`` has it, or with parameters and state ``sharded`` too."""
    net, transform = nn.pure(model), optax.adam(1e-3)
    params, buffers = jax.eval_shape(net.init, jax.random.key(0))
    state = jax.eval_shape(transform.init, params)

    def loss_fn(params: Any, buffers: Any, x: jax.Array, y: jax.Array) -> Any:
        with sdpa_kernel(SDPBackend.MATH):  # no loops, of which XLA would count one turn
            logits, buffers = net.apply(params, buffers, x, train=True)
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1)), buffers

    def step(params: Any, buffers: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        (loss, buffers), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, buffers, x, y)
        if not sharded:
            loss, grads = lax.pmean((loss, grads), "data")
        updates, state = transform.update(grads, state, params)
        return optax.apply_updates(params, updates), buffers, state, loss

    if sharded:
        rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
        places = parallel.shardings(params, mesh)
        adam = state[0]._replace(count=whole, mu=places, nu=places), state[1]
        held = places, jax.tree.map(lambda _: whole, buffers), adam
        compiled = jax.jit(step, in_shardings=(*held, rows, rows), out_shardings=(*held, whole))
    else:
        specs = P(), P(), P(), P("data"), P("data")
        compiled = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False))
    program = compiled.lower(params, buffers, state, *batch).compile()
    sent: Counter[str] = Counter()
    operations = parallel.collectives(program)
    for operation in operations:
        sent[operation.kind] += operation.bytes
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return Cost(program.cost_analysis()["flops"], sent, len(operations), size)


def mesh_of(devices: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:devices]), ("data",))


def resnet_cost(devices: int, rows: int) -> Cost:
    """On ``rows`` images a device."""
    n = devices * rows
    batch = jax.ShapeDtypeStruct((n, 3, 224, 224), np.float32), jax.ShapeDtypeStruct((n,), np.int32)
    return cost_of(resnet50(), batch, mesh_of(devices), sharded=False)


def transformer_cost(devices: int, sharded: bool, layers: int = 32, length: int = 2048) -> Cost:
    """On one sequence a device."""
    tokens = jax.ShapeDtypeStruct((devices, length), np.int32)
    one, two = (cost_of(transformer(n), (tokens, tokens), mesh_of(devices), sharded) for n in (1, 2))
    return two.and_more(one, layers - 2)


def show(title: str, cost_at: Callable[[int], Cost], counts: list[int]) -> Cost:
    """Print the costs; the last one is returned."""
    cost = None
    print(f"\n{title}\n\n| devices | parameters | TFLOP a device | collectives | GB by kind, results on a device |\n|---|---|---|---|---|")
    for devices in counts:
        cost = cost_at(devices)
        kinds = ", ".join(f"{kind} {size / 1e9:.3f}" for kind, size in sorted(cost.sent.items()))
        print(f"| {devices} | {cost.parameters / 1e9:.3f} G | {cost.flops / 1e12:.3f} | {cost.count} | {kinds} |", flush=True)
    assert cost is not None
    return cost


class Machine(NamedTuple):
    """Sustained speeds of a device in its network; the defaults of the options are of an H100 in nodes of eight."""

    flops: float  # a second
    near: float  # bytes a second each way to the devices of its node
    far: float  # and to others
    hop: float  # seconds of latency
    node: int  # devices

    def all_reduce(self, size: float, devices: int) -> float:
        """Seconds by rings, first within nodes and then between them, for which a device carries its node's share."""
        near = min(devices, self.node)
        far = -(-devices // self.node)
        seconds = 2 * (near - 1) / near * size / self.near + 2 * (far - 1) / far * size / near / self.far
        return seconds + self.hop * math.log2(max(devices, 2))


def show_times(title: str, cost: Cost, rows: int, whole: int, serial: int, machine: Machine, counts: list[int]) -> None:
    """Times of steps of ``whole`` rows, of a cost of ``rows`` of them; ``serial`` collectives of statistics wait for each other.

    Gradients are sent in half precision, as they become known in the last two thirds of the computation.
    """
    print(f"\n{title}\n\n| devices | rows a device | computing, ms | gradients, ms | statistics, ms | step, ms | of the time computing |")
    print("|---|---|---|---|---|---|---|")
    for n in counts:
        if whole < n:
            print(f"| {n} | less than one | | | | | |")
            continue
        compute = cost.flops * whole / n / rows / machine.flops
        gradients = machine.all_reduce(2 * cost.parameters, n)
        statistics = serial * machine.all_reduce(0, n)
        step = compute + max(gradients - compute * 2 / 3, 0) + statistics
        numbers = (f"{1e3 * value:.1f}" for value in (compute, gradients, statistics, step))
        print(f"| {n} | {whole / n:g} | {' | '.join(numbers)} | {100 * compute / step:.0f} % |")


def main() -> None:
    parser = argparse.ArgumentParser(description="What a training step computes and sends, from compiled programs.")
    parser.add_argument("--model", choices=["resnet50", "transformer"], help="both without it")
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 64, 512, MOST_DEVICES])
    parser.add_argument("--images", type=int, default=8, help="a device; what is computed is in proportion to them")
    parser.add_argument("--tflops", type=float, nargs=2, default=[75, 400], help="sustained by a device, on the two models")
    parser.add_argument("--near", type=float, default=450, help="GB/s of a device within its node")
    parser.add_argument("--far", type=float, default=50, help="GB/s of a device to other nodes")
    parser.add_argument("--hop", type=float, default=5, help="microseconds of latency, for each doubling of the devices")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", max(options.devices))
    counts = [8, 32, 128, 512, 1024, 2048, 4096]
    speeds = 1e9 * options.near, 1e9 * options.far, 1e-6 * options.hop, 8
    if options.model != "transformer":
        title = f"ResNet-50, data parallel, {options.images} images of 224 x 224 a device"
        cost = show(title, lambda n: resnet_cost(n, options.images), options.devices)
        machine = Machine(1e12 * options.tflops[0], *speeds)
        show_times("ResNet-50, 32,768 images a step", cost, options.images, 32768, cost.count - 1, machine, counts)
        show_times(
            "ResNet-50, 64 images a device and step, on 4,096", cost, options.images, 64 * 4096, cost.count - 1, machine, counts[-1:]
        )
    if options.model != "resnet50":
        machine = Machine(1e12 * options.tflops[1], *speeds)
        for sharded, form in ((False, "data parallel"), (True, "fully sharded")):
            title = f"7 B transformer, {form}, one sequence of 2,048 tokens a device"
            devices = [n for n in options.devices if not sharded or n <= MOST_SHARDED]
            cost = show(title, lambda n, sharded=sharded: transformer_cost(n, sharded), devices)
            if not sharded:
                show_times("7 B transformer, 2,048 sequences (4.2 M tokens) a step", cost, 1, 2048, 0, machine, counts)


if __name__ == "__main__":
    main()
