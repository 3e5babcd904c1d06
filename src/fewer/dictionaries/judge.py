"""The quality of a dictionary on a language model, beside a random dictionary and principal components of the same size."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from fewer.core import budget
from fewer.features import Dictionary
from fewer.features.abs_top_k import AbsTopK
from fewer.features.top_k import TopK
from fewer.measure import Reconstruction, Reference, Score, mean, nll, paired, quality, ratio, reconstruction
from fewer.measure.quality import at_rest, device_of
from fewer.models.tap import Enough, Tap, all_but, tapped

from .fit import fit
from .splice import replaced, spliced

FIT = 2**16  # tokens from which means and controls are fitted
Sides = tuple[Float[Tensor, "n in"], Float[Tensor, "n out"]]


def judge(
    dictionary: Dictionary,
    model: nn.Module,
    windows: Int[Tensor, "count length"],
    leave: frozenset[int] = frozenset(),
    batch: int = 4,
    controls: bool = True,
    told: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """One row each for the dictionary, `random` and `pca` (see `random_like`, `principal_like`), and `dense`, where nothing
    is replaced: flat, ready for a table.

    l0, explained, cosine, dead, dense: `measure.reconstruction` of what is written. ce: next-token cross entropy with the
    dictionary spliced in, nats a token; delta_ce: less the model's own; kl: KL(model || spliced). recovered_zero and
    recovered_mean: (CE of ablation - CE spliced) / (CE of ablation - CE), against zeros and against the mean, whose own
    cross entropies stand in the row `dense` as ce_zero and ce_mean. Zeros break a residual stream so badly that nearly all
    is then recovered: read the other.

    Tokens in `leave` are replaced nowhere, ablated nowhere and not counted in the first five; what the model predicts
    at them does count in its cross entropy. `mask` and `tokens` say so in each row, `better` says which way each number
    is better, `*_low` and `*_high` are 95 % intervals over windows. Controls and means are fitted on the first 65,536
    of the judged tokens themselves, which flatters them a little and the dictionary never.

    What reads later than it writes cannot be put into one run: its rows have no cross entropies, and say so in `missing`.
    `told` hears how many of the passes over the text are done. ValueError: it does not fit the model (see `fit`).
    """
    run = _Run(model, dictionary, windows, leave, batch, told, 3 if controls else 1)
    first = run.explained(dictionary)
    x, y = run.first
    rivals = {"dictionary": dictionary}
    if controls:
        k = max(1, round(first.l0.value))
        rivals |= {"random": random_like(dictionary, x, y, k), "pca": principal_like(dictionary, x, y, k)}
    found = {name: first if d is dictionary else run.explained(d) for name, d in rivals.items()}
    same = {"tokens": first.tokens, "mask": run.mask} | ({"missing": run.fit.late} if run.fit.late else {})
    none = {"name": "dense", "explained": 1.0, "fvu": 0.0, "cosine": 1.0}
    if run.fit.late:
        return [
            row(name, (r.l0, r.explained, r.fvu, r.cosine, r.dead, r.dense)) | same for name, r in found.items()
        ] + [none | same]
    reference = run.counted(Reference.of(model, windows, batch))
    own, zero, middle = run.ablated(y)
    rows = [row(name, run.scores(d, found[name], reference, own, zero, middle)) | same for name, d in rivals.items()]
    losses = {"ce": own, "ce_zero": zero, "ce_mean": middle}
    costs = row("dense", tuple(Score(name, mean(loss), higher_is_better=False) for name, loss in losses.items()))
    recovered = {name: 1.0 for name in ("recovered_zero", "recovered_mean") if name in rows[0]}
    return [*rows, costs | none | {"delta_ce": 0.0, "kl": 0.0} | recovered | same]


def row(name: str, scores: tuple[Score, ...]) -> dict[str, Any]:
    """Scores side by side as plain numbers, with their intervals and the way each is better.

    >>> from fewer.measure import Estimate
    >>> row("mine", (Score("l0", Estimate(2.0, 1.5, 2.5, 9), False),))
    {'name': 'mine', 'l0': 2.0, 'l0_low': 1.5, 'l0_high': 2.5, 'better': {'l0': 'lower'}}
    """
    flat: dict[str, Any] = {"name": name}
    for s in scores:
        flat |= {s.name: s.value, f"{s.name}_low": s.estimate.low, f"{s.name}_high": s.estimate.high}
    return flat | {"better": {s.name: "higher" if s.higher_is_better else "lower" for s in scores}}


def random_like(
    dictionary: Dictionary, x: Float[Tensor, "n in"], y: Float[Tensor, "n out"], k: int, seed: int = 0
) -> Dictionary:
    """As many latents with random unit directions, of which the k that agree most with an input speak.

    z = TopK((x - mean) A^T), x_hat = mean + s z B, where B = A if the same is read and written; the one number s is the
    least-squares one on `x` and `y` (near-parallel atoms would otherwise say the same thing k times).
    """
    n, make = dictionary.latents, torch.Generator().manual_seed(seed)
    x, y = x.float(), y.float()
    atoms = F.normalize(torch.randn(n, x.shape[1], generator=make), dim=1).to(x.device)
    said = F.normalize(torch.randn(n, y.shape[1], generator=make), dim=1).to(x.device)
    said = atoms if dictionary.is_autoencoder else said
    plain = replace(
        dictionary,
        sparsifier=TopK(),
        budget=budget(str(min(k, n))),
        encoder=atoms,
        encoder_bias=-atoms @ x.mean(0),
        decoder=said,
        decoder_bias=y.mean(0),
        own={},
        skip=None,
        about={"control": "random", "seed": seed},
    )
    guess = plain(x) - plain.decoder_bias
    scale = (guess * (y - plain.decoder_bias)).sum() / guess.square().sum().clamp(min=1e-30)
    return replace(plain, decoder=said * scale)


def principal_like(dictionary: Dictionary, x: Float[Tensor, "n in"], y: Float[Tensor, "n out"], k: int) -> Dictionary:
    """The k principal components: as many numbers a token as the dictionary says, but always the same ones.

    Where one thing is read and another written: the best linear map of rank k, W V V^T with the least-squares map W and
    the leading right singular vectors V of what it says (reduced-rank regression). At most `dim` components.
    """
    from_, to = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    whole = torch.linalg.lstsq(from_.cpu(), to.cpu(), driver="gelsd").solution
    whole = torch.eye(x.shape[1], dtype=torch.float64) if dictionary.is_autoencoder else whole
    told = from_.cpu() @ whole
    k = min(k, y.shape[1])
    main = torch.linalg.eigh(told.T @ told).eigenvectors.flip(1)[:, :k].T
    encoder, main = (main @ whole.T).float().to(x.device), main.float().to(x.device)
    return replace(
        dictionary,
        sparsifier=AbsTopK(),
        budget=budget(str(k)),
        encoder=encoder,
        encoder_bias=-encoder @ x.float().mean(0),
        decoder=main.contiguous(),
        decoder_bias=y.float().mean(0),
        own={},
        skip=None,
        about={"control": "pca"},
    )


def _recovered(name: str, ablated: Tensor, heard: Tensor, own: Tensor) -> tuple[Score, ...]:
    """Nothing if ablation costs nothing: then there is nothing to recover."""
    if not (ablated - own).sum() > 0:
        return ()
    return (Score(name, ratio(ablated - heard, ablated - own), higher_is_better=True),)


class _Run:
    """The model on the windows, some at a time, and what its sites say there."""

    def __init__(
        self,
        model: nn.Module,
        dictionary: Dictionary,
        windows: Tensor,
        leave: frozenset[int],
        batch: int,
        told: Callable[[int, int], None] | None,
        rivals: int,
    ):
        self.model, self.windows, self.batch, self.told = model, windows, batch, told
        self.fit = fit(dictionary, model)
        self.where = all_but(leave) if leave else None
        real = int(all_but(leave)(windows).sum())
        if not real:
            raise ValueError(f"all {windows.numel()} tokens are among those left alone: there is nothing to judge")
        but = f"all but {sorted(leave)}" if leave else "all"
        self.mask = f"{but}: {real} of {windows.numel()} tokens"
        self.passes, self.of = 0, rivals if self.fit.late else 2 * rivals + 4

    def counted(self, found: Any) -> Any:
        """What one more pass over the text has found."""
        self.passes += 1
        if self.told:
            self.told(self.passes, self.of)
        return found

    def sides(self) -> Iterator[Sides]:
        """What is read and what is written in each window, without the tokens that are left alone."""
        taps = list(dict.fromkeys([*self.fit.reads, *self.fit.writes]))
        for number, ids in enumerate(self.windows.split(self.batch)):
            with at_rest(self.model), tapped(self.model, taps, brief=True) as heard, contextlib.suppress(Enough):
                self.model(input_ids=ids.to(device_of(self.model)))
            for tap in taps:
                if not heard[tap].isfinite().all():
                    raise ValueError(f"batch {number} of the text, site {tap}: an activation is NaN or infinite")
            x, y = (torch.cat([heard[tap] for tap in side], -1).float() for side in (self.fit.reads, self.fit.writes))
            real = torch.ones_like(ids, dtype=torch.bool) if self.where is None else self.where(ids)
            yield from ((x[i][m.to(x.device)], y[i][m.to(x.device)]) for i, m in enumerate(real))

    def explained(self, dictionary: Dictionary) -> Reconstruction:
        return self.counted(reconstruction(self._pieces(dictionary.to(device_of(self.model)))))

    def _pieces(self, dictionary: Dictionary) -> Iterator[tuple[Tensor, Tensor, Any]]:
        for x, y in self.sides():
            codes = dictionary.encode(x)
            yield y, dictionary.decode(codes, x), codes

    def scores(
        self, d: Dictionary, found: Reconstruction, reference: Reference, own: Tensor, zero: Tensor, middle: Tensor
    ) -> tuple[Score, ...]:
        """All that is known of a dictionary that can be spliced in; the other losses are those of each window."""
        with spliced(self.model, d, where=self.where):
            heard = self.counted(quality(self.model, reference, self.windows, self.batch))
        return (
            *(found.l0, found.explained, found.fvu, found.cosine),
            Score("ce", mean(heard.nll), higher_is_better=False),
            Score("delta_ce", paired(heard.nll, own), higher_is_better=False),
            Score("kl", mean(heard.divergence), higher_is_better=False),
            *_recovered("recovered_zero", zero, heard.nll, own),
            *_recovered("recovered_mean", middle, heard.nll, own),
            *(found.dead, found.dense),
        )

    @property
    def first(self) -> Sides:
        """Both sides of the first tokens."""
        parts: list[Sides] = []
        for side in self.sides():
            parts.append(side)
            if sum(len(x) for x, _ in parts) >= FIT:
                break
        return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])

    def ablated(self, y: Float[Tensor, "n out"]) -> tuple[Tensor, Tensor, Tensor]:
        """The loss in each window: the model's own, with zeros for what is written, with its mean."""

        def loss(vector: Tensor) -> Tensor:
            by: dict[Tap, Tensor] = dict(zip(self.fit.writes, vector.chunk(len(self.fit.writes)), strict=True))
            with replaced(self.model, by, self.where):
                return self.counted(nll(self.model, self.windows, self.batch))

        middle = y.double().mean(0).float()
        own = self.counted(nll(self.model, self.windows, self.batch))
        return own, loss(torch.zeros_like(middle)), loss(middle)
