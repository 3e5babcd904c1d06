"""Cumulative tail truncation: what goes missing when the weakest neurons say nothing, and how weak they may be."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .estimate import Score, mean

Piece = Float[Tensor, "*tokens neurons"]


def output_size(h: Piece, down: Float[Tensor, "out neurons"]) -> Piece:
    """The length of what each neuron adds to the layer's output, `|h_i| * ||W_down[:, i]||`: what a cut is compared with."""
    return h.abs() * down.float().norm(dim=0).to(h)


def tail_error(h: Piece, down: Float[Tensor, "out neurons"], cut: float) -> Float[Tensor, " *tokens"]:
    """CETT of each token: the length of what neurons below `cut` add up to, over that of the whole output; 0 is none.

        D = {i : |h_i| * ||W_down[:, i]|| < cut},   CETT = || sum_{i in D} h_i W_down[:, i] || / || W_down h ||

    Zhang et al. 2024, ReLU^2 Wins (2402.03804), eq. 3 and 4. A bias of the layer is no neuron's: it is left out.

    >>> tail_error(torch.tensor([[3.0, 4.0]]), torch.eye(2), cut=3.5)
    tensor([0.6000], dtype=torch.float64)
    """
    h, down = h.double(), down.double()
    tail = torch.where(output_size(h, down) < cut, h, 0)
    return (tail @ down.T).norm(dim=-1) / (h @ down.T).norm(dim=-1).clamp(min=1e-300)


def tail_score(pieces: Iterable[Float[Tensor, "_ length neurons"]], down: Tensor, cut: float) -> Score:
    """The mean CETT at a cut, with Student's interval over windows. Lower is better."""
    each = [tail_error(piece, down, cut).mean(-1).cpu() for piece in pieces]
    if not each:
        raise ValueError("no window was heard: give at least one")
    return Score("cett", mean(torch.cat(each)), higher_is_better=False)


def on(h: Piece, down: Float[Tensor, "out neurons"], cut: float) -> Bool[Tensor, "*tokens neurons"]:
    """Who is active: whose output is at least as long as the cut, and not nothing.

    >>> on(torch.tensor([3.0, -4.0, 0.0]), torch.eye(3), cut=0.0)
    tensor([ True,  True, False])
    """
    size = output_size(h, down)
    return (size >= cut) & (size > 0)


def tail_cut(pieces: Sequence[Piece], down: Float[Tensor, "out neurons"], error: float = 0.2, steps: int = 24) -> float:
    """The largest cut whose mean CETT over tokens is `error` or less, by bisection (ReLU^2 Wins and Sparsing Law use 0.2).

    Found to `2 ** -steps` of the largest output, in float32. Neurons that add nothing, as those that a ReLU has silenced,
    always go. ValueError: an error outside (0, 1), nothing heard, numbers that are not finite.

    >>> h = torch.tensor([[3.0, 4.0], [0.0, 4.0]])  # leaving the 3 out costs 0.6 and 0
    >>> cut = tail_cut([h], torch.eye(2), error=0.4)
    >>> on(h, torch.eye(2), cut).tolist()
    [[False, True], [False, True]]
    """
    if not 0 < error < 1:
        raise ValueError(f"a tail truncation error of {error}: it is a share of the output, above 0 and below 1")
    if not sum(p.numel() for p in pieces):
        raise ValueError("no token was heard: give at least one piece of hidden neurons")
    h, down = torch.cat([p.reshape(-1, p.shape[-1]) for p in pieces]).float(), down.float()
    size, whole = output_size(h, down), (h @ down.T).norm(dim=-1).clamp(min=1e-30)
    high = float(size.max()) * 1.001 + 1e-30
    if not high < float("inf"):
        raise ValueError("hidden neurons are NaN or infinite: is the model in float16?")
    low = 0.0
    for _ in range(steps):
        middle = (low + high) / 2
        lost = (torch.where(size < middle, h, 0) @ down.T).norm(dim=-1)
        low, high = (middle, high) if (lost / whole).mean() <= error else (low, middle)
    return low
