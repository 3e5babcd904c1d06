"""Processes that share one piece of work, started by torchrun or any other launcher; mostly there is one."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")
PATIENCE = timedelta(minutes=30)  # how long one process waits for word of another, and then gives up


@dataclass(frozen=True)
class Crew:
    """Which of how many processes this is. Every method is called by all of them, in the same order.

    >>> Crew().gather("what one says"), Crew().share([3, 1], cost=abs, do=str)
    (['what one says'], ['3', '1'])
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> "Crew":
        """The crew of torch's process group, if one was made; else one process alone."""
        if not torch.distributed.is_available() or not torch.distributed.is_initialized():
            return cls()
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())

    def mean(self, value: Tensor, count: int) -> tuple[Tensor, int]:
        """The mean over all that everybody counted, from each one's own; summed in float64, the same bits everywhere."""
        if self.size == 1:
            return value, count
        total = torch.tensor([float(count)], dtype=torch.float64, device=value.device)
        torch.distributed.all_reduce(total)
        wide = value.double() * (count / max(1.0, total.item()))
        torch.distributed.all_reduce(wide)
        return wide.to(value.dtype), int(total.item())

    def sum(self, mine: Tensor) -> Tensor:
        """The sum over all, in the tensor's own dtype, the same bits everywhere."""
        if self.size == 1:
            return mine
        total = mine.detach().clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    def stack(self, mine: Tensor) -> Tensor:
        """The tensors of all, in their order along a new first dimension; all of one shape."""
        if self.size == 1:
            return mine[None]
        every = mine.new_empty(self.size, *mine.shape)
        torch.distributed.all_gather(list(every.unbind(0)), mine.detach().contiguous())
        return every

    def gather(self, mine: T) -> list[T]:
        """What each process says, in their order."""
        if self.size == 1:
            return [mine]
        every: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(every, mine)
        return every

    def first(self, do: Callable[[], T]) -> T:
        """What the first process finds, done there alone and told to all; its error is everybody's."""
        if self.size == 1:
            return do()
        told = [_outcome(do) if self.rank == 0 else None]
        torch.distributed.broadcast_object_list(told, src=0)
        return _or_raise(told[0])

    def share(self, items: Sequence[T], cost: Callable[[T], float], do: Callable[[T], R]) -> list[R]:
        """`[do(item) for item in items]`, each done by one process and told to all; the costliest are dealt out first,
        each to who has least to do. An error in one process is raised in all."""
        if self.size == 1:
            return [do(item) for item in items]
        load, whose = [0.0] * self.size, [0] * len(items)
        for i in sorted(range(len(items)), key=lambda i: -cost(items[i])):
            whose[i] = load.index(min(load))
            load[whose[i]] += cost(items[i])
        mine = {i: _outcome(lambda i=i: do(items[i])) for i in range(len(items)) if whose[i] == self.rank}  # type: ignore[misc]
        every = self.gather(mine)
        return [_or_raise(every[whose[i]][i]) for i in range(len(items))]


@contextlib.contextmanager
def launched(patience: timedelta = PATIENCE) -> Iterator[Crew]:
    """The processes that torchrun started, as a crew for as long as this is open; one process alone without it.

    Tensors on a GPU are summed by NCCL, all else by gloo. Who dies takes the rest along: a process that waits for it
    gets an error at once where the connection is seen to break, else after `patience`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or torch.distributed.is_initialized():
        yield Crew.here()
        return
    gpu = torch.cuda.is_available() and torch.distributed.is_nccl_available()
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=patience)
    try:
        yield Crew.here()
    finally:
        torch.distributed.destroy_process_group()


def _outcome(do: Callable[[], Any]) -> Any:
    try:
        return do()
    except Exception as error:
        return error


def _or_raise(outcome: Any) -> Any:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


ALONE = Crew()
