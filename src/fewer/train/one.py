"""A dictionary while it is learnt: its tensors, what it misses, and what it becomes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fewer.features import (
    ByFrequency,
    ByPursuit,
    Dictionary,
    Own,
    Pass,
    Sparsifier,
    by_places,
    joined,
    plainly,
    said,
    spoken,
)
from fewer.features.linear import Linear
from fewer.layout import Codes
from fewer.models.tap import GRADIENT

from .begin import PARTS, begun
from .known import Known
from .pupil import Lesson, Pupil
from .sharing import ALONE, Sharing

Rows = Float[Tensor, "n dim"]
LOOK = 16  # steps from one look at how many are dead to the next
ROOM = 64  # the least room for the dead, if there are any
RECENT = 0.99  # of how often a latent speaks, what a batch leaves of what was known before


class One:
    """Tensors by name, `own_*` being what the sparsifier learns; `silent` and `share` are not learnt.

    The tokens since each latent spoke, and, for sparsifiers that ask for it, in which share of the recent tokens it did. Where
    processes share latents, each holds its own.
    """

    def __init__(
        self,
        pupil: Pupil,
        known: Known,
        lesson: Lesson,
        batch: int,
        by: Sharing = ALONE,
        rows: Rows | None = None,
    ):
        self.pupil, self.known, self.lesson, self.by = pupil, known, lesson, by
        tensors = begun(pupil, known, lesson, rows)
        device = known.mean.device
        fixed = {PARTS + name for name in pupil.decoder.fixed}
        self.tensors = {name: t.to(device).requires_grad_(name not in fixed) for name, t in by.mine(tensors).items()}
        m, self.linear = pupil.sparsifier, isinstance(pupil.encoder, Linear)
        self.tensors["silent"] = torch.zeros(len(self.atoms()), device=device)
        self.shares = type(m).idle is not Sparsifier.idle
        if self.shares:
            self.tensors["share"] = torch.zeros(pupil.latents, device=device)
        if isinstance(m, ByFrequency):
            self.tensors["encoder_bias"].requires_grad_(False)
            self.tensors |= {name: torch.zeros(pupil.latents, device=device) for name in ("above", "peak")}
            self.tensors["heard"] = torch.zeros(2, device=device)  # steps and rows since the last move
        self.dead_after = lesson.dead_after or min(10_000_000, lesson.steps * batch // 10)
        self.spare = -1  # tokens for which none can have died yet; below 0, one must look
        self.aux_latents = lesson.aux_latents or max(1, tensors["encoder"].shape[1] // 2)
        if m.looks and (lesson.skip or pupil.reads != pupil.writes):
            raise ValueError(f"{m.name} compares what is read with the atoms: read and write the same, no skip")
        if lesson.hide and (lesson.skip or pupil.reads != pupil.writes or type(m).views is not Sparsifier.views):
            raise ValueError(
                f"hide={lesson.hide}: what is hidden must be read and written, without a skip, by codes that speak at once, and {m.name} {pupil.reads} -> {pupil.writes} does otherwise"
            )
        self.sparse = not lesson.hide and by_places(m) and type(m).penalty is Sparsifier.penalty and not m.looks
        self.room: int | None = None  # for how many of the dead, where steps are of a kind
        own_way = self.linear and not self.shares and not m.feels and "decoder" in self.tensors
        self.alike = self.sparse and by is ALONE and own_way and plainly(m, pupil.budget, pupil.latents) > 0
        self.soon = self.dead_after - LOOK * batch  # whoever is silent for less is alive at the next look

    @property
    def rows(self) -> tuple[str, ...]:
        """The matrices whose gradients are known as who used which row."""
        mine = [name for name, alone in (("encoder", self.linear), ("decoder", "decoder" in self.tensors)) if alone]
        return tuple(mine) if self.sparse else ()

    @property
    def own(self) -> dict[str, Tensor]:
        return {name[4:]: t for name, t in self.tensors.items() if name.startswith("own_")}

    def atoms(self) -> Float[Tensor, "latents out"]:
        """The decoder's rows, of length one: what is learnt, or what is made of that."""
        t = self.tensors
        return t["decoder"] if "decoder" in t else self.pupil.decoder.atoms(self._parts(t))

    def _parts(self, t: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name.removeprefix(PARTS): x for name, x in t.items() if name.startswith(PARTS)}

    def loss(self, rows: Rows, progress: float) -> Tensor:
        """The share of the variance that is missed, with what the sparsifier adds, and the dead's share of the rest."""
        if self.lesson.hide:
            return self._of_the_hidden(rows, progress)
        t, m, x = self.tensors, self.pupil.sparsifier, self._read(rows)
        target, atoms = self.known.of_sites(rows, self.pupil.writes), self.atoms()
        beside = target if "skip" not in t else target - F.linear(x, t["skip"])
        if self.sparse:
            codes = self._codes(x, self._owned(rows))
            found, error = self.by.missed(codes, m.views(codes), atoms, beside, t["decoder_bias"])
        else:
            own = self._owned(rows)
            pre, z = self._dense(x, own)
            error = beside - t["decoder_bias"] - z @ atoms
            seen = Pass(x, target, pre, z, atoms, t["decoder_bias"], progress)
            found = error.square().mean() + m.penalty(seen, self.pupil.budget, own)
        return found + self.of_the_dead(rows, error.detach())

    def _of_the_hidden(self, rows: Rows, progress: float) -> Tensor:
        """The same of columns that were not there to tell who speaks; their loss, by itself, is the share that is missed."""
        t, m, x, atoms = self.tensors, self.pupil.sparsifier, self._read(rows), self.atoms()
        many = min(x.shape[1] - 1, max(1, round(self.lesson.hide * x.shape[1])))
        hidden = torch.zeros(x.shape[1], dtype=torch.bool).index_fill_(0, torch.randperm(x.shape[1])[:many], True)
        hidden = hidden.to(x.device)
        seen = m.look((x - t["decoder_bias"])[:, ~hidden], atoms[:, ~hidden]) if m.looks else {}
        own = {**self.own, **seen}
        pre, z = self._dense(x.masked_fill(hidden, 0) * (len(hidden) / (len(hidden) - many)), own)
        error = x - t["decoder_bias"] - z @ atoms
        cost = m.penalty(Pass(x, x, pre, z, atoms, t["decoder_bias"], progress), self.pupil.budget, own)
        return error[:, hidden].square().mean() + cost + self.of_the_dead(rows, error.detach())

    def says(self, rows: Rows) -> Float[Tensor, "n out"]:
        """What is said of what is read; who spoke is counted."""
        return self.told(rows, 0.0)[0]

    def told(self, rows: Rows, progress: float) -> tuple[Float[Tensor, "n out"], Float[Tensor, ""]]:
        """What is said of what is read, and what the sparsifier adds to a loss; who spoke is counted."""
        x, t, m, atoms, own = self._read(rows), self.tensors, self.pupil.sparsifier, self.atoms(), self._owned(rows)
        skipped = F.linear(x, t["skip"]) if "skip" in t else 0
        if self.sparse:
            z = self.by.added(spoken(self._codes(x, own), atoms))
            return z + t["decoder_bias"] + skipped, rows.new_zeros(())
        pre, z = self._dense(x, own)
        seen = Pass(x, self.known.of_sites(rows, self.pupil.writes), pre, z, atoms, t["decoder_bias"], progress)
        return z @ atoms + t["decoder_bias"] + skipped, m.penalty(seen, self.pupil.budget, own)

    def _codes(self, x: Tensor, own: Own) -> Codes:
        """Who speaks, and how loud."""
        t, p, n = self.tensors, self.pupil, len(self.tensors["silent"])
        if self.linear:
            codes = self.by.coded(p.sparsifier, p.budget, x, t["encoder"], t["encoder_bias"], own)  # type: ignore[arg-type]
        else:
            codes = joined(p.sparsifier, p.budget, p.encoder, self._maps(x), n, own)  # type: ignore[arg-type]
        loud = torch.where(codes.value != 0, codes.index, n).flatten()  # empty slots point behind the last
        heard = torch.zeros(n + 1, device=x.device)
        one = heard.new_ones(()).expand_as(loud)
        self._heard((heard.scatter_add_(0, loud, one) if self.shares else heard.scatter_(0, loud, one))[:n], len(x))
        return codes

    def _dense(self, x: Tensor, own: Own) -> tuple[Tensor, Tensor]:
        """All pre-activations, and all codes; one that pursues has no encoder."""
        p = self.pupil
        blind = isinstance(p.sparsifier, ByPursuit)
        pre = x.new_zeros(()).expand(len(x), p.latents) if blind else p.encoder.spread(self._maps(x))
        z = p.sparsifier.code(pre, p.budget, own)
        self._heard((z != 0).sum(0), len(x))
        if isinstance(p.sparsifier, ByFrequency):
            self._adapt(p.sparsifier, pre.detach())
        return pre, z

    def _adapt(self, m: ByFrequency, pre: Tensor) -> None:
        """Count who is above zero, and move biases when it is time."""
        t = self.tensors
        t["above"].add_((pre > 0).sum(0))
        t["peak"].copy_(torch.maximum(t["peak"], pre.amax(0)))
        t["heard"].add_(torch.tensor([1.0, len(pre)], device=pre.device))
        if t["heard"][0].item() >= m.every:
            t["encoder_bias"].copy_(
                m.adapt(t["encoder_bias"], t["above"] / t["heard"][1], t["peak"], self.pupil.budget)
            )
            for name in ("above", "peak", "heard"):
                t[name].zero_()

    def _maps(self, x: Tensor) -> Tensor:
        return F.linear(x, self.tensors["encoder"], self.tensors["encoder_bias"])

    def _owned(self, rows: Rows) -> Own:
        """What the sparsifier knows: what it has learnt, what it sees of these inputs if it looks, and feels if it feels."""
        t, m, k = self.tensors, self.pupil.sparsifier, self.known
        seen = m.look(self._read(rows) - t["decoder_bias"], self.atoms()) if m.looks else {}
        if m.feels:  # by what is read as it comes; the loss by latents is the same in any units
            slope = k.of_sites(rows, [name + GRADIENT for name in self.pupil.reads])
            slope = slope * k.of_sites(k.scale, self.pupil.reads).to(rows.device)
            seen = {**seen, "pull": (slope @ self.atoms().detach().mT).abs()}
        return {**self.own, **seen} if seen else self.own

    def _read(self, rows: Rows) -> Tensor:
        return self.known.of_sites(rows, self.pupil.reads)

    def _heard(self, counts: Tensor, tokens: int) -> None:
        """Who spoke, and, if it matters, in how many of `tokens` tokens."""
        counts, tokens = self.by.heard(counts, tokens)
        self.tensors["silent"].add_(tokens).masked_fill_(counts > 0, 0)
        if self.shares:
            self.tensors["share"].mul_(RECENT).add_(counts / tokens, alpha=1 - RECENT)
        self.spare -= tokens

    def kind(self, step: int) -> int | None:
        """What tells steps apart that launch other kernels, and must be asked before each; None: no step is like another.

        It is for how many of the dead there is room: no fewer than there can be before the next look.
        """
        if self.alike and (self.room is None or step % LOOK == 0):
            dying = int((self.tensors["silent"] > self.soon).sum()) if self.lesson.aux else 0
            self.room = min(self.pupil.latents, max(ROOM, 1 << (dying - 1).bit_length())) if dying else 0
        return self.room

    def _idle(self) -> tuple[Tensor, int]:
        """Who is taught by what the others leave over, of the latents that are here, and how many there are in all.

        Nobody, for a while, if nobody can have died since the last look. Where steps are of a kind, the most silent, some of whom
        may not be dead.
        """
        m, silent = self.pupil.sparsifier, self.tensors["silent"]
        if self.room is not None:
            return silent.topk(self.room).indices.sort().values, self.room
        if not self.lesson.aux or isinstance(m, ByPursuit) or (self.spare >= 0 and not self.shares):
            return silent.new_zeros(0, dtype=torch.long), 0
        idle = m.idle(silent, self.tensors.get("share", silent), self.dead_after).nonzero()[:, 0]  # a GPU is waited for
        if not (every := self.by.number(len(idle))):
            self.spare = self.dead_after - int(self.by.most(silent.max().item()))
        return idle, every

    def of_the_dead(self, rows: Rows, error: Float[Tensor, "n out"]) -> Tensor:
        """How much of `error` the loudest of the dead miss; their pre-activations count as they are, also below zero."""
        dead, every = self._idle()
        if not every:
            return rows.new_zeros(())
        codes = self._dead_codes(self._read(rows), dead, min(self.aux_latents, every))
        rest = error - self.by.added(spoken(codes, self.atoms()))
        some = 1.0 if self.room is None else self.tensors["silent"].amax() > self.dead_after
        return some * self.lesson.aux * rest.square().mean() / self.by.mean(error.square().mean()).clamp(min=1e-12)

    def _dead_codes(self, x: Tensor, dead: Tensor, k: int) -> Codes:
        """What the k loudest of the dead say to each row."""
        t, n = self.tensors, len(self.tensors["silent"])
        if not self.linear:
            maps = self._maps(x)
            index = dead[self.pupil.encoder.spread(maps.detach())[:, dead].topk(k, dim=1, sorted=False).indices]
            return Codes(index, self.pupil.encoder.at(maps, index), n)
        with torch.no_grad():
            pre = F.linear(x, t["encoder"][dead], t["encoder_bias"][dead])
            if self.room is not None:
                pre = pre.masked_fill(t["silent"][dead] <= self.dead_after, -torch.inf)
            value, at, here = self.by.loudest(pre, k)
            here = here if self.room is None else value > -torch.inf
        index = dead[at]
        z = said(x, t["encoder"], t["encoder_bias"], index, value)
        return Codes(index, z if here is None else torch.where(here, z, 0.0), n)

    def done(self, held: Rows, about: Mapping[str, Any], others: Sequence[Sequence[str]]) -> Dictionary:
        """The dictionary, as plain activations want it: mean and scales are folded in.

        What it shares with `others`, by what they write, adds up: the mean of a site is said by the first who writes it.
        """
        t, p, k = self.by.whole({name: t.detach() for name, t in self.tensors.items()}), self.pupil, self.known
        mean, scale = k.of_sites(k.mean, p.reads), k.of_sites(k.scale, p.reads)
        scale_out, taken = k.of_sites(k.scale, p.writes), {name for names in others for name in names}
        first = {name: torch.zeros_like(k.mean[at]) if name in taken else k.mean[at] for name, at in k.sites.items()}
        own, parts = {name: tensor.detach() for name, tensor in self.own.items()}, self._parts(t)
        atoms = p.decoder.atoms(parts or t)
        own |= p.decoder.told(parts, scale_out) if parts else {}
        if type(p.sparsifier).settle is not Sparsifier.settle:
            x = self._read(held)
            with torch.no_grad():
                pre = p.encoder.spread(F.linear(x, t["encoder"], t["encoder_bias"]))
                own |= p.sparsifier.settle(pre, p.budget, {**self._owned(held), **own})
        encoder = (atoms if isinstance(p.sparsifier, ByPursuit) else t["encoder"]) / scale
        skip = t["skip"] * scale_out[:, None] / scale if "skip" in t else None
        bias = t["decoder_bias"] * scale_out + torch.cat([first[name] for name in p.writes])
        return Dictionary(
            p.sparsifier,
            p.budget,
            encoder,
            t["encoder_bias"] - encoder @ mean,
            atoms * scale_out,
            bias if skip is None else bias - skip @ mean,
            own,
            skip,
            p.reads,
            p.writes,
            {**about, "seed": p.seed, "dead": int((t["silent"] > self.dead_after).sum())},
            p.encoder,
        )
