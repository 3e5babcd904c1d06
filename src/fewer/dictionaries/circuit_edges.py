"""Which node of a circuit acts through which: direct effects between latents of two sites (Marks et al. 2024, 2403.19647)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.models import Tap, hooked

from .circuits import Behaviour, Circuit, Inputs, State, _gradients, _told


@dataclass(frozen=True, eq=False)
class Edges:
    """`effects[d, u]`: how much of what latent `sources[u]` of one site does to the metric goes straight to latent `targets[d]` of a later one.

    The last row and column are the sites' errors. `end` is empty, with one row, for what goes to the metric past all sites.
    """

    start: str
    end: str
    sources: tuple[int, ...]
    targets: tuple[int, ...]
    effects: Float[Tensor, "down up"]


def circuit_edges(m: Behaviour, inputs: Inputs, patch: Mapping[str, State], circuit: Circuit) -> list[Edges]:
    """The edges of a circuit: dm/dd . dd/du . (patch - clean of u), with the gradient dd/du not passing through any other site.

    d is a latent's code z or an error, dm/dd its total gradient; the mean over prompts, summed over positions. If the circuit
    keeps all latents, then, for each u, the sum over all edges out of it is its effect by `attribution_patching`.
    One backward pass for each node of the circuit. Differs from the paper: sites that lie in the residual stream cut it, where the paper
    subtracts the paths through the stream.
    """
    clean, total = m.states(inputs), _gradients(m, inputs, {})
    leaf: dict[Tap, Tensor] = {}
    heard: dict[Tap, Tensor] = {}

    def cut(tap: Tap, x: Tensor) -> Tensor:
        heard[tap], leaf[tap] = x, x.detach().requires_grad_()
        return leaf[tap]

    sites = m.sites()
    with torch.enable_grad(), hooked(m.model, {t: lambda x, t=t: cut(t, x) for t in sites}):  # type: ignore[misc]
        straight = m.metric(m.model(**inputs)).sum()
    taps = list(leaf)  # in the order of the run
    chosen = {tap: circuit[str(tap)].latents.any(0).nonzero()[:, 0] for tap in taps}

    def onto(up: Tap, amounts: Sequence[Tensor]) -> Tensor:
        rows = [_through(m, up, chosen[up], a, leaf[up], clean, patch) for a in amounts]
        return torch.stack(rows)

    found = []
    for place, down in enumerate(taps):
        if place and heard[down].requires_grad:
            amounts = _amounts(m, down, chosen[down], heard[down], total[str(down)])
            for up in taps[:place]:
                ids = tuple(chosen[up].tolist()), tuple(chosen[down].tolist())
                found.append(Edges(str(up), str(down), *ids, onto(up, amounts)))
    for up in taps:
        found.append(Edges(str(up), "", tuple(chosen[up].tolist()), (), onto(up, [straight])))
    return found


def _amounts(m: Behaviour, down: Tap, latents: Tensor, x: Tensor, g: Tensor) -> list[Tensor]:
    """What the metric owes to each node, to first order: differentiable by the sites before."""
    d = m.sites()[down]
    with torch.enable_grad():
        now = _told(d, x)
        g = g.to(d.decoder.dtype)
        each = (now.z[..., latents] * (g @ d.decoder[latents].T)).sum((0, 1))
        return [*each.unbind(), (now.error * g).sum()]


def _through(
    m: Behaviour,
    up: Tap,
    latents: Tensor,
    amount: Tensor,
    leaf: Tensor,
    clean: Mapping[str, State],
    patch: Mapping[str, State],
) -> Tensor:
    d, site = m.sites()[up], str(up)
    (g,) = (
        torch.autograd.grad(amount, [leaf], retain_graph=True, allow_unused=True) if amount.requires_grad else (None,)
    )
    g = torch.zeros_like(leaf) if g is None else g
    g = g.to(d.decoder.dtype)
    z = (patch[site].z - clean[site].z)[..., latents] * (g @ d.decoder[latents].T)
    error = ((patch[site].error - clean[site].error) * g).sum()
    return torch.cat([z.sum((0, 1)), error[None]]) / len(g)
