"""Several processes that train one model, started by ``torchrun``; one process runs the same code unchanged.

Every process holds the whole model and its share of the batch. Gradients are averaged by DDP, so that
``N`` processes with batch ``B`` give the numbers of one process that accumulates ``N`` batches of ``B``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from auralign.errors import UsageError

_TIMEOUT = datetime.timedelta(minutes=30)


@dataclasses.dataclass(frozen=True)
class World:
    """This process among the others.

    Attributes:
        rank: Its number, from 0.
        size: How many there are.
        local_rank: Its number on this machine, which is also its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes files, logs and checkpoints."""
        return self.rank == 0

    def barrier(self) -> None:
        """Waits until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def mean(self, value: Tensor) -> Tensor:
        """The mean over processes, elementwise; the same on all of them. Not differentiable."""
        if self.size == 1:
            return value.detach()
        total = value.detach().clone().to(self._wire(value))
        dist.all_reduce(total)
        return (total / self.size).to(value.device)

    def gather(self, value: Shaped[Tensor, "item *rest"]) -> Shaped[Tensor, "all *rest"]:
        """Rows of all processes in order of rank, on all of them; each may have another number of rows."""
        if self.size == 1:
            return value.detach()
        wire = self._wire(value)
        counts = [torch.zeros(1, dtype=torch.int64, device=wire) for _ in range(self.size)]
        dist.all_gather(counts, torch.tensor([len(value)], device=wire))
        lengths = [int(count) for count in counts]
        padded = value.new_zeros((max(lengths), *value.shape[1:]), device=wire)
        padded[: len(value)] = value.detach()
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        whole = torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])
        return whole.to(value.device)

    def gather_json(self, value: Any) -> list[Any]:
        """One JSON value from each process, in order of rank, on all of them."""
        if self.size == 1:
            return [json.loads(json.dumps(value))]
        data = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = self.gather(torch.tensor([len(data)])).tolist()
        whole = bytes(self.gather(data).tolist())
        ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
        return [json.loads(whole[end - length : end]) for end, length in zip(ends, lengths, strict=True)]

    def _wire(self, value: Tensor) -> torch.device:
        """Where the backend wants a value: NCCL takes tensors of this process's GPU only."""
        return torch.device("cuda", self.local_rank) if dist.get_backend() == "nccl" else value.device

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with averaged gradients; itself in a single process."""
        if self.size == 1:
            return module
        first = next(module.parameters())
        devices = [first.device.index] if first.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices)

    def share(self, count: int) -> range:
        """Which of ``count`` items are this process's: every ``size``-th one, starting at its rank."""
        return range(self.rank, count, self.size)


@contextlib.contextmanager
def world(*, backend: str = "") -> Iterator[World]:
    """Joins the processes that ``torchrun`` started, for the duration of the context; may be nested.

    Args:
        backend: ``nccl`` or ``gloo``; by default what fits the devices.

    Raises:
        UsageError: torchrun's variables contradict each other.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    try:
        here = World(int(os.environ["RANK"]), size, int(os.environ["LOCAL_RANK"]))
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"WORLD_SIZE is {size}, but this process does not know its place",
            why=f"{error} is not set as torchrun sets it",
            hint="start with: torchrun --nproc-per-node N -m auralign train RECIPE",
        ) from error
    if dist.is_initialized():
        yield here
        return
    cuda = torch.cuda.is_available() and backend != "gloo"
    if cuda:
        torch.cuda.set_device(here.local_rank)
    dist.init_process_group(backend or ("nccl" if cuda else "gloo"), timeout=_TIMEOUT)
    try:
        yield here
    finally:
        dist.destroy_process_group()


def is_first() -> bool:
    """Whether this process writes, also before :func:`world` was entered.

    >>> is_first()
    True
    """
    return os.environ.get("RANK", "0") == "0"
