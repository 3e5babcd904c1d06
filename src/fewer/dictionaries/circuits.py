"""Which latents cause what a model does: circuits over dictionaries' latents and what the dictionaries miss (Marks et al. 2024, 2403.19647)."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fewer.features import Dictionary
from fewer.models import Tap, find_taps, hooked, tapped

from .steer import ScaleWhenActive, steered

Metric = Callable[[Any], Float[Tensor, " batch"]]  # what the model says -> one number for each prompt
Inputs = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class State:
    """What one site says, told apart: x = z W_dec + b_dec + error. Sizes of 1 in front stand for all prompts or positions."""

    z: Float[Tensor, "#batch #positions latents"]
    error: Float[Tensor, "#batch #positions dim"]


@dataclass(frozen=True, eq=False)
class Nodes:
    """A number, or yes and no, for every latent of a site and for its error: [1, ...] for all positions, [positions, ...] for each."""

    latents: Float[Tensor, "positions latents"] | Bool[Tensor, "positions latents"]
    error: Float[Tensor, " positions"] | Bool[Tensor, " positions"]


Circuit = Mapping[str, Nodes]  # by the site's full path


@dataclass(frozen=True, eq=False)
class Behaviour:
    """What is asked about: a model, autoencoders of some of its sites, and one number for each prompt.

    `aligned`: position 3 means the same in every prompt, so that a node is a latent at a position; else a node is a latent at all positions.
    """

    model: nn.Module
    dictionaries: Sequence[Dictionary]
    metric: Metric
    aligned: bool = False

    def sites(self) -> dict[Tap, Dictionary]:
        """The dictionaries by their taps. ValueError: one that is no autoencoder of one site, or two of one site."""
        for d in self.dictionaries:
            if not d.is_autoencoder or len(d.reads) != 1:
                raise ValueError(
                    f"a circuit is over autoencoders of one site: this reads {list(d.reads)}, writes {list(d.writes)}"
                )
        taps = [find_taps(self.model, d.reads)[0] for d in self.dictionaries]
        if len(set(taps)) < len(taps):
            raise ValueError(f"two dictionaries of one site: {', '.join(map(str, taps))}")
        return dict(zip(taps, self.dictionaries, strict=True))

    def states(self, inputs: Inputs) -> dict[str, State]:
        """What every site says to these prompts, told apart."""
        sites = self.sites()
        with torch.no_grad(), tapped(self.model, list(sites)) as heard:
            self.model(**inputs)
        return {str(tap): _told(sites[tap], x) for tap, x in heard.items()}

    def __call__(self, inputs: Inputs) -> Float[Tensor, " batch"]:
        """The metric, with nothing changed."""
        with torch.no_grad():
            return self.metric(self.model(**inputs))


def mean_states(states: Mapping[str, State], aligned: bool = False) -> dict[str, State]:
    """The mean over prompts, and over positions if they are not aligned: what a node is set to when it is taken out."""
    dims = (0,) if aligned else (0, 1)
    return {site: State(s.z.mean(dims, keepdim=True), s.error.mean(dims, keepdim=True)) for site, s in states.items()}


def zero_states(states: Mapping[str, State]) -> dict[str, State]:
    """Nothing said at all: the other way to take a node out."""
    return {site: State(torch.zeros_like(s.z[:1, :1]), torch.zeros_like(s.error[:1, :1])) for site, s in states.items()}


def attribution_patching(m: Behaviour, inputs: Inputs, patch: Mapping[str, State]) -> Circuit:
    """Every node's indirect effect, m(do node = patch) - m, to first order: (patch - clean) . dm/dnode at the clean run (eq. 2).

    One forward and one backward pass. The mean over prompts; summed over positions unless they are aligned.
    """
    grads = _gradients(m, inputs, {})
    return _effects(m, m.states(inputs), patch, grads)


def integrated_gradients(m: Behaviour, inputs: Inputs, patch: Mapping[str, State], steps: int = 10) -> Circuit:
    """The same with the gradient's mean on the way from clean to patch, one site at a time (eq. 3), by the midpoint rule:
    alpha = 1/2n, 3/2n, ..., (2n-1)/2n for n = `steps`.

    Effects of all nodes of a site then sum to m(site = patch) - m, up to O(1/n^2).
    Differs from the paper's code: it takes alpha = 0, .1, ..., .9 (a left Riemann sum, whose error is O(1/n)).
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: expected 1 or more")
    clean, sites = m.states(inputs), m.sites()
    found: dict[str, Tensor] = {}
    for tap, d in sites.items():
        site = str(tap)
        move = _spoken(d, patch[site]) - _spoken(d, clean[site])
        total = torch.zeros_like(_spoken(d, clean[site]))
        for step in range(steps):
            far = (step + 0.5) / steps * move
            total += _gradients(m, inputs, {tap: lambda x, far=far: x + far.to(x.dtype)}, [tap])[site]
        found[site] = total / steps
    return _effects(m, clean, patch, found)


def ablation(
    m: Behaviour, inputs: Inputs, patch: Mapping[str, State], nodes: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """The exact effect of each latent of `nodes` alone, m(do latent = patch) - m, by a run for each; all positions at once.

    What the attributions are to be near. A run each: for few latents. [latents asked for] by site, the mean over prompts.
    """
    before, clean = m(inputs).mean(), m.states(inputs)
    found = {}
    for tap, d in m.sites().items():
        site, said = str(tap), []
        move = patch[site].z - clean[site].z
        for latent in nodes.get(site, ()):
            change = move[..., latent, None] * d.decoder[latent]
            with torch.no_grad(), hooked(m.model, {tap: lambda x, c=change: x + c.to(x.dtype)}):
                said.append(m(inputs).mean() - before)
        found[site] = torch.stack(said) if said else before.new_zeros(0)
    return found


@contextlib.contextmanager
def kept(m: Behaviour, circuit: Circuit, patch: Mapping[str, State]) -> Iterator[None]:
    """While this is open, only nodes of the circuit (True) are as the model makes them; all others are as in `patch`.

    At each site: x' = W_dec (z where kept, patch where not) + b_dec + (error where kept, patch where not), with z and
    error from what the model now says there, downstream of what was already replaced. With all nodes kept, it is the model, bit for bit.
    """

    def change(x: Tensor, d: Dictionary, keep: Nodes, to: State) -> Tensor:
        if keep.latents.all() and keep.error.all():
            return x
        now = _told(d, x)
        z = torch.where(keep.latents, now.z, to.z)
        error = torch.where(keep.error[:, None], now.error, to.error)
        return _spoken(d, State(z, error)).to(x.dtype)

    sites = m.sites()
    for tap in sites:
        if str(tap) not in circuit or str(tap) not in patch:
            raise ValueError(
                f"site {tap}: the circuit and the patch must both name it; a site that is whole is all True"
            )
    changes = {
        tap: lambda x, d=d, s=str(tap): change(x, d, circuit[s], patch[s])  # type: ignore[misc]
        for tap, d in sites.items()
    }
    with hooked(m.model, changes):
        yield


def faithfulness(m: Behaviour, inputs: Inputs, circuit: Circuit, patch: Mapping[str, State]) -> float:
    """(m(circuit) - m(nothing)) / (m(model) - m(nothing)): 1 with all nodes, 0 with none."""
    with kept(m, circuit, patch):
        some = m(inputs).mean()
    with kept(m, only(circuit, lambda x: torch.zeros_like(x, dtype=torch.bool)), patch):
        nothing = m(inputs).mean()
    return float((some - nothing) / (m(inputs).mean() - nothing))


def completeness(m: Behaviour, inputs: Inputs, circuit: Circuit, patch: Mapping[str, State]) -> float:
    """The faithfulness of all nodes that are not in the circuit: near 0 if the circuit left nothing out."""
    return faithfulness(m, inputs, only(circuit, torch.logical_not), patch)


def only(circuit: Circuit, what: Callable[[Tensor], Tensor]) -> Circuit:
    """`what` of each site's numbers.

    >>> c = {"layers.0": Nodes(torch.tensor([[0.5, -2.0]]), torch.tensor([0.1]))}
    >>> only(c, lambda x: x.abs() > 0.3)["layers.0"].latents
    tensor([[True, True]])
    """
    return {site: Nodes(what(n.latents), what(n.error)) for site, n in circuit.items()}


def largest(effects: Circuit, count: int, errors: bool = True) -> Circuit:
    """The `count` nodes with the largest effect of either sign, over all sites; ties go to the earlier one.

    >>> c = {"a": Nodes(torch.tensor([[0.5, -2.0]]), torch.tensor([1.0]))}
    >>> largest(c, 2)["a"].latents, largest(c, 2)["a"].error
    (tensor([[False,  True]]), tensor([True]))

    Without `errors`, errors are all kept and not counted: the question is then which latents matter.
    """
    flat = torch.cat([t.abs().flatten() for n in effects.values() for t in (n.latents, n.error)[: 1 + errors]])
    keep = torch.zeros_like(flat, dtype=torch.bool)
    keep[flat.argsort(descending=True, stable=True)[:count]] = True
    found, at = {}, 0
    for site, n in effects.items():
        latents = keep[at : (at := at + n.latents.numel())].view_as(n.latents)
        error = keep[at : (at := at + n.error.numel())] if errors else torch.ones_like(n.error, dtype=torch.bool)
        found[site] = Nodes(latents, error)
    return found


def at_random(effects: Circuit, count: int, seed: int = 0, errors: bool = True) -> Circuit:
    """As many nodes by chance: what a circuit must beat. Nodes without any effect may be drawn too."""
    generator = torch.Generator().manual_seed(seed)
    return largest(
        {
            s: Nodes(*(torch.rand(t.shape, generator=generator) for t in (n.latents, n.error)))
            for s, n in effects.items()
        },
        count,
        errors,
    )


@contextlib.contextmanager
def without(model: nn.Module, chosen: Sequence[tuple[Dictionary, Sequence[int]]]) -> Iterator[None]:
    """SHIFT: while this is open, these latents say nothing, such as those a person judged beside the point; errors stay."""
    with contextlib.ExitStack() as stack:
        for d, latents in chosen:
            stack.enter_context(steered(model, d, [ScaleWhenActive(i, by=0.0) for i in latents]))
        yield


def _told(d: Dictionary, x: Tensor) -> State:
    flat = x.flatten(0, -2).to(d.encoder.dtype)
    z = d.code(flat)
    return State(z.view(*x.shape[:-1], -1), (flat - z @ d.decoder - d.decoder_bias).view_as(x))


def _spoken(d: Dictionary, s: State) -> Tensor:
    return s.z @ d.decoder + d.decoder_bias + s.error


def _gradients(m: Behaviour, inputs: Inputs, changes: Mapping[Tap, Any], taps: Sequence[Tap] = ()) -> dict[str, Tensor]:
    """The mean metric's total gradient by what each site says, times the number of prompts."""
    leaf: dict[Tap, Tensor] = {}

    def hear(tap: Tap, x: Tensor) -> Tensor:
        x = changes.get(tap, lambda x: x)(x)
        leaf[tap] = x if x.requires_grad else x.detach().requires_grad_()
        return leaf[tap]

    sites = list(taps or m.sites())
    with torch.enable_grad(), hooked(m.model, {tap: lambda x, tap=tap: hear(tap, x) for tap in sites}):  # type: ignore[misc]
        total = m.metric(m.model(**inputs)).sum()
    grads = torch.autograd.grad(total, [leaf[tap] for tap in sites], allow_unused=True)
    return {str(tap): torch.zeros_like(leaf[tap]) if g is None else g for tap, g in zip(sites, grads, strict=True)}


def _effects(
    m: Behaviour, clean: Mapping[str, State], patch: Mapping[str, State], grads: Mapping[str, Tensor]
) -> Circuit:
    found = {}
    for tap, d in m.sites().items():
        site, over = str(tap), (0,) if m.aligned else (0, 1)
        g = grads[site].to(d.decoder.dtype)
        latents = ((patch[site].z - clean[site].z) * (g @ d.decoder.T)).sum(over) / len(g)
        error = ((patch[site].error - clean[site].error) * g).sum(-1).sum(over) / len(g)
        found[site] = Nodes(latents.view(-1, d.latents), error.view(-1))
    return found
