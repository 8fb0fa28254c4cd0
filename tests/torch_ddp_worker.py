"""One of two processes that train by torch's DistributedDataParallel, for tests/test_distributed.py to compare with."""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn


def main() -> None:
    rank, folder, rate, momentum = int(sys.argv[1]), pathlib.Path(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    data = np.load(folder / "data.npz")
    state = {name.removeprefix("state:"): torch.tensor(value) for name, value in data.items() if name.startswith("state:")}
    images, labels = torch.tensor(data["images"]), torch.tensor(data["labels"]).long()
    half = slice(rank * images.shape[1] // 2, (rank + 1) * images.shape[1] // 2)
    results = {}
    for kind in ("distributed", "own buffers", "accumulated"):
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
        model.load_state_dict(state)
        ddp = nn.parallel.DistributedDataParallel(model, forward_sync_buffers=kind != "own buffers")
        optimizer = torch.optim.SGD(model.parameters(), rate, momentum)
        losses = []
        for x, y in zip(images[:, half], labels[:, half], strict=True):
            if kind == "accumulated" and len(losses) == 5:
                break
            optimizer.zero_grad()
            if kind == "accumulated":
                with ddp.no_sync():
                    nn.functional.cross_entropy(ddp(x[:2]), y[:2]).backward()
                x, y = x[2:], y[2:]
            loss = nn.functional.cross_entropy(ddp(x), y)
            loss.backward()
            optimizer.step()
            total = loss.detach().clone()
            dist.all_reduce(total)
            losses.append(total.item() / 2)
        results |= {f"{kind}:{name}": value.numpy() for name, value in model.state_dict().items()} | {f"{kind}:losses": np.array(losses)}
    np.savez(folder / f"torch{rank}.npz", **results)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
