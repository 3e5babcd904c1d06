"""Steps on a GPU that are launched once and then repeated as they were recorded: small ones are else bound by their launches."""

from collections import Counter
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

Graph = tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Tensor | None]
FIRST = 3  # steps of a kind that are launched before one is recorded: kernels are compiled in them, and moments made


class Recorded:
    """`step`, as one CUDA graph for each kind of step and shape of what is given to it.

    Steps of one kind launch the same kernels on the same tensors, ask the GPU nothing and draw no random numbers. What one of
    them gives back is overwritten by the next. On a CPU, and if they are of no kind, they are done as they are.
    """

    def __init__(self, step: Callable[..., Tensor | None], on_gpu: bool):
        self.step, self.on_gpu, self.seen = step, on_gpu, Counter[Hashable]()
        self.graphs: dict[Hashable, Graph] = {}

    def __call__(self, kind: Hashable | None, *given: Tensor) -> Tensor | None:
        key = (kind, *(t.shape for t in given))
        self.seen[key] += 1
        if (
            kind is None
            or not torch.cuda.is_available()
            or not all(t.is_cuda for t in given)
            or self.seen[key] <= FIRST
        ):
            return self.step(*given)
        if key not in self.graphs:
            self.graphs[key] = self._record(given)
        graph, held, told = self.graphs[key]
        for place, t in zip(held, given, strict=True):
            place.copy_(t)
        graph.replay()
        return told

    def _record(self, given: tuple[Tensor, ...]) -> Graph:
        graph, held = torch.cuda.CUDAGraph(), tuple(t.clone() for t in given)
        pool = next(iter(self.graphs.values()))[0].pool() if self.graphs else None
        with torch.cuda.graph(graph, pool=pool):
            told = self.step(*held)
        return graph, held, told
