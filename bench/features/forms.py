"""What the forms of dictionaries do on planted data, one line a dictionary: python -m bench.features.forms kronecker|hide|bias [steps]"""

import sys

import torch
import torch.nn.functional as F

from fewer.core import budget
from fewer.features.group_bias import GroupBias
from fewer.features.kronecker import Kronecker
from fewer.features.linear import Linear
from fewer.features.orthogonal_matching_pursuit import OrthogonalMatchingPursuit
from fewer.features.top_k import TopK
from fewer.measure.matching import cosines
from fewer.train import Lesson, Pupil, Rows, learn

MAKE = torch.Generator().manual_seed(40)  # not a seed of which a dictionary begins: its first atoms would be the truth


def kronecker(steps: int = 250) -> None:
    """Conjunctions of 4 and 4 in 8 heads: linear maps for 128 and for 64 latents, and 64 maps for 128 latents."""
    p, q = (F.normalize(torch.randn(8, 4, 32, generator=MAKE), dim=2) for _ in range(2))
    amount = (torch.rand(8000, 8, generator=MAKE) < 3 / 8) * (1 + torch.rand(8000, 8, generator=MAKE))
    i, j = (torch.randint(4, (8000, 8), generator=MAKE) for _ in range(2))
    head = torch.arange(8)
    x = (amount[..., None] * (p[head, i] + q[head, j])).sum(1) + 0.02 * torch.randn(8000, 32, generator=MAKE)
    for latents, how in ((128, Linear()), (64, Linear()), (128, Kronecker())):
        (d,) = learn([Pupil(TopK(), budget("3"), latents, encoder=how)], Rows(x, 256), Lesson(steps))
        missed = (d(x) - x).square().sum() / (x - x.mean(0)).square().sum()
        print(f"{how} {latents} latents, {d.encoder.numel()} numbers in the encoder: {missed:.4f} missed", flush=True)


def hide(steps: int = 300) -> None:
    """24 directions for 96 atoms under noise: the mean largest cosine of the truth with atoms, and of atoms with the truth."""
    true = F.normalize(torch.randn(24, 32, generator=MAKE), dim=1)
    where = torch.rand(4000, 24, generator=MAKE).argsort(1)[:, :3]
    x = torch.zeros(4000, 24).scatter_(1, where, torch.randn(4000, 3, generator=MAKE)) @ true
    for noise in (0.3, 0.1):
        rows = x + noise * torch.randn(4000, 32, generator=MAKE)
        for share in (0.0, 0.15):
            pupil = Pupil(OrthogonalMatchingPursuit(), budget("3"), 96, 11)
            (d,) = learn([pupil], Rows(rows, 250), Lesson(steps, hide=share))
            near = cosines(true, d.decoder).abs()
            print(f"noise {noise}, hide {share}: {near.amax(1).mean():.4f}, {near.amax(0).mean():.4f}", flush=True)


def bias(steps: int = 1200) -> None:
    """64 directions, 4 at a time: how often groups speak, and how near atoms are."""
    true = F.normalize(torch.randn(64, 32, generator=MAKE), dim=1)
    z = (torch.rand(12000, 64, generator=MAKE) < 4 / 64) * (1 + torch.rand(12000, 64, generator=MAKE))
    x = z @ true + 0.02 * torch.randn(12000, 32, generator=MAKE)
    for seed in (1, 2):
        (d,) = learn([Pupil(GroupBias(4, 0.1), budget("4"), 128, seed)], Rows(x[:10000], 250), Lesson(steps))
        share = (d.encode(x[10000:]).dense() != 0).float().mean(0).view(4, 32).mean(1)
        print(f"{share.tolist()}, {cosines(true, d.decoder).amax(1).mean():.4f}", flush=True)


if __name__ == "__main__":
    {"kronecker": kronecker, "hide": hide, "bias": bias}[sys.argv[1]](*map(int, sys.argv[2:]))
