"""One training step of a TopK dictionary: ours, and the textbook's in plain torch from the same start."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fewer.core import budget
from fewer.features.top_k import TopK
from fewer.train.known import Known
from fewer.train.one import One
from fewer.train.pupil import Lesson, Pupil
from fewer.train.rows import RowAdam

RATE = 1e-3


class Ours:
    """What `fewer.train.learn` does between two batches."""

    def __init__(self, dim: int, latents: int, k: int, batch: int, device: str, half: bool = True):
        known = Known(torch.zeros(dim, device=device), torch.ones(dim, device=device), {"": slice(0, dim)})
        lesson = Lesson(steps=10**6, dead_after=10**7)
        self.one, self.known = One(Pupil(TopK(), budget(str(k)), latents).at([""]), known, lesson, batch), known
        self.optimizer = RowAdam(self.one.tensors, self.one.rows, ["decoder"])
        self.optimizer.param_groups[0]["lr"] = RATE
        self.half = half and device == "cuda"

    def __call__(self, batch: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=self.half):
            loss = self.one.loss(self.known.seen(batch), 0.5)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


class Plain:
    """Dense codes, autograd through every matrix, Adam fused by torch, rows of the decoder at length 1."""

    def __init__(self, ours: Ours, k: int):
        t = {name: p.detach().clone() for name, p in ours.one.tensors.items()}
        names = ("encoder", "encoder_bias", "decoder", "decoder_bias")
        self.w, self.b, self.d, self.c = (t[name].requires_grad_() for name in names)
        self.k, self.half = k, ours.half
        many = {"capturable": True} if self.w.is_cuda else {}
        self.optimizer = torch.optim.Adam([self.w, self.b, self.d, self.c], RATE, fused=True, **many)

    def __call__(self, batch: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=self.half):
            loss = self.loss(batch)
        loss.backward()
        with torch.no_grad():
            self.d.grad -= (self.d.grad * self.d).sum(1, keepdim=True) * self.d
        self.optimizer.step()
        with torch.no_grad():
            self.d /= self.d.norm(dim=1, keepdim=True)
        return loss.detach()

    def loss(self, batch: Tensor) -> Tensor:
        pre = F.linear(batch, self.w, self.b)
        value, index = pre.topk(self.k, dim=1, sorted=False)
        z = torch.zeros_like(pre).scatter(1, index, value.relu())
        return (batch - F.linear(z, self.d.mT, self.c).float()).square().mean()


def data(rows: int, dim: int, device: str, seed: int = 0) -> Tensor:
    """Rows of length about sqrt(dim): a few directions of many, with noise."""
    make = torch.Generator(device).manual_seed(seed)
    directions = torch.randn(4 * dim, dim, generator=torch.Generator(device).manual_seed(99), device=device)
    index = torch.randint(4 * dim, (rows, 8), generator=make, device=device)
    noise = torch.randn(rows, dim, generator=make, device=device)
    return directions[index].sum(1) / math.sqrt(8) * 0.9 + noise * 0.3


def bound(dim: int, latents: int, batch: int, flops: float, bandwidth: float) -> float:
    """Seconds that one product in bfloat16 and one pass of Adam over float32 state (24 bytes a number) take."""
    return 2.0 * batch * dim * latents / flops + 2 * 24.0 * dim * latents / bandwidth
