"""Train a language model on the characters of a text, and let it write.

    python examples/char_lm.py                        an LSTM, on the source of Python's standard library
    python examples/char_lm.py --model transformer
    python examples/char_lm.py --text FILE --seconds 600

Writes a learning curve to ``--out`` and prints a sample.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from tqdm import tqdm

import jnn as nn
import jnn.functional as F

mpl.use("Agg")
import matplotlib.pyplot as plt

EVERY = 50
TEXT_SIZE = 2_000_000


class LSTM(nn.Module):
    """Characters to embeddings to an LSTM to logits."""

    def __init__(self, characters: int, width: int = 192) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, 64)
        self.lstm = nn.LSTM(64, width, batch_first=True)
        self.head = nn.Linear(width, characters)

    def forward(self, x: jax.Array) -> jax.Array:
        return self.head(self.lstm(self.embedding(x))[0])


class Transformer(nn.Module):
    """A stack of causal self-attention layers over embeddings of characters and positions."""

    def __init__(self, characters: int, context: int, width: int = 96, depth: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.position = nn.Embedding(context, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width))
        self.head = nn.Linear(width, characters)

    def forward(self, x: jax.Array) -> jax.Array:
        steps = x.shape[1]
        h = self.embedding(x) + self.position(jnp.arange(steps))[None]
        mask = nn.Transformer.generate_square_subsequent_mask(steps)
        return self.head(self.encoder(h, mask, is_causal=True))


def read_text(path: str | None) -> str:
    """The text of a file, or of the standard library's modules in alphabetical order."""
    if path is not None:
        return pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
    parts, size = [], 0
    for file in sorted(pathlib.Path(os.__file__).parent.glob("*.py")):
        parts.append(file.read_text(encoding="utf-8", errors="replace"))
        size += len(parts[-1])
        if size > TEXT_SIZE:
            break
    return "".join(c for c in "".join(parts)[:TEXT_SIZE] if c.isascii())


def windows(data: np.ndarray, starts: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Stretches of the text, and the same one character later."""
    at = starts[:, None] + np.arange(context + 1)[None]
    return data[at[:, :-1]], data[at[:, 1:]]


def loss_fn(model: nn.Module, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean negative log likelihood of the next character, in nats."""
    logits = model(x)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1))


def write(model: nn.Module, data: np.ndarray, context: int, length: int, temperature: float, seed: int) -> np.ndarray:
    """Characters drawn one at a time, each from what the model makes of the last ``context``."""
    pure, (params, buffers) = nn.pure(model), nn.split(model)

    @jax.jit
    def draw(seen: jax.Array, key: jax.Array) -> jax.Array:
        logits = pure.apply(params, buffers, seen[None])[0][0, -1]
        return jax.random.categorical(key, logits / temperature)

    seen = list(data[:context])
    for key in jax.random.split(jax.random.key(seed), length):
        seen.append(int(draw(jnp.asarray(seen[-context:], jnp.int32), key)))
    return np.array(seen[context:])


def plot(history: list[tuple[int, float, float]], path: pathlib.Path) -> None:
    """The learning curve: loss by step."""
    steps, train, validation = zip(*history, strict=True)
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(steps, train, label="training")
    axes.plot(steps, validation, label="validation")
    axes.set(xlabel="step", ylabel="loss (nats per character)", title="Next character")
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["lstm", "transformer"], default="lstm")
    parser.add_argument("--text", help="a text file; the standard library's source when absent")
    parser.add_argument("--seconds", type=float, default=110, help="how long to train")
    parser.add_argument("--context", type=int, default=64, help="characters in a stretch")
    parser.add_argument("--batch", type=int, default=32, help="stretches in a step")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--length", type=int, default=400, help="characters to write at the end")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    return parser.parse_args()


def main() -> None:
    args = arguments()
    text = read_text(args.text)
    characters = sorted(set(text))
    if len(text) < 20 * args.context:
        raise SystemExit(f"the text has {len(text)} characters; at least {20 * args.context} are needed")
    number = {c: i for i, c in enumerate(characters)}
    data = np.array([number[c] for c in text], np.int32)
    train, held_out = np.split(data, [int(0.9 * len(data))])

    nn.manual_seed(args.seed)
    model = LSTM(len(characters)) if args.model == "lstm" else Transformer(len(characters), args.context)
    optimizer = nn.optim.Optimizer(model, optax.chain(optax.clip_by_global_norm(1.0), optax.adam(args.learning_rate)))
    step = nn.train_step(loss_fn, optimizer)
    pure = nn.pure(model)
    evaluate = jax.jit(lambda params, buffers, x, y: loss_fn(lambda x: pure.apply(params, buffers, x)[0], x, y))
    sample = np.random.default_rng(args.seed)
    held = windows(held_out, np.linspace(0, len(held_out) - args.context - 2, 128).astype(int), args.context)

    history: list[tuple[int, float, float]] = []
    losses: list[jax.Array] = []
    begin, steps = time.monotonic(), 0
    with tqdm(total=round(args.seconds), unit="s") as bar:
        while (gone := time.monotonic() - begin) < args.seconds or not history:
            losses.append(step(*windows(train, sample.integers(0, len(train) - args.context - 1, args.batch), args.context)))
            steps += 1
            if steps % EVERY == 0:
                history.append((steps, float(jnp.mean(jnp.stack(losses))), float(evaluate(*nn.split(model), *held))))
                losses.clear()
                bar.set_postfix(step=steps, training=f"{history[-1][1]:.3f}", validation=f"{history[-1][2]:.3f}")
                bar.update(min(round(gone), bar.total) - bar.n)

    args.out.mkdir(parents=True, exist_ok=True)
    curve = args.out / f"char_lm_{args.model}.png"
    plot(history, curve)
    print(f"{steps} steps; validation loss {history[-1][2]:.3f} nats per character; learning curve in {curve}\n")
    print("".join(characters[i] for i in write(model.eval(), held_out, args.context, args.length, args.temperature, args.seed)))


if __name__ == "__main__":
    main()
