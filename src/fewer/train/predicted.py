"""Learning which hidden neurons will matter, from what the frozen model's own neurons do."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fewer.activations import SHARED, Predictor
from fewer.calibrate import Stats
from fewer.calibrate.held import Held
from fewer.core import Budget, Group
from fewer.measure import Score, set_recall
from fewer.measure.quality import at_rest, device_of
from fewer.models.groups import mlps
from fewer.select import select

from .kept import Kept, job_of
from .learner import Learner
from .loop import Told, Training
from .masks import Judge, next_token
from .parts import train_parts

Parts = dict[str, dict[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Predicted(Learner[Predictor]):
    """Learn a predictor for the MLPs of `model` at `where`, and write it at `out`.

    The loss is the mean over MLPs of the predictor's own (`Predictor.loss`), against the neurons that a budget keeps of the true
    scores: |h|, or |h dL/dh| for one that `feels`, L being `judge`. The model runs as it is; no number of it changes. A killed run
    goes on where it was, to the bit.
    """

    model: nn.Module
    out: Path
    where: str = "*"
    how: Training = Training()  # noqa: RUF009  frozen
    told: Told | None = None
    force: bool = False  # to replace the state of a run with other settings
    judge: Judge = next_token

    def fit(self, method: Predictor, budget: Budget, batches: Iterable[Tensor]) -> Predictor:
        batches = list(batches)
        found = mlps_at(self.model, self.where)
        for mlp in found:
            budget.check(1, mlp.units)
        parts = self._first(method, found)

        def loss(batch: Tensor, progress: float) -> Tensor:
            heard = hear(self.model, found, batch, method, self.judge)
            each = [_of(method, parts, name).loss(x, select(worth, budget)) for name, (x, worth) in heard.items()]
            return torch.stack(each).mean()

        kept = Kept(self.out, self._key(method, budget, batches), force=self.force)
        return train_parts(method, parts, loss, batches, self.out, kept, self.how, self.told)

    def _first(self, method: Predictor, found: Sequence[Group]) -> Parts:
        make, parts = torch.Generator().manual_seed(self.how.seed), Parts()
        for mlp in found:
            for name, t in method.begin(mlp.writers[0].shape[1], mlp.units, make).items():
                mine = parts.setdefault(SHARED if name.startswith("shared_") else mlp.reader.name, {})
                if name not in mine:
                    mine[name] = t.to(device_of(self.model)).requires_grad_()
        return parts

    def _key(self, method: Predictor, budget: Budget, batches: list[Tensor]) -> str:
        said = f"{method!r} {budget} {self.where} {replace(self.how, save_after=0.0)}"
        return job_of(said, self.model.named_parameters(), batches)


def mlps_at(model: nn.Module, where: str) -> list[Group]:
    """The MLPs of which `where` names a map. ValueError: none."""
    found = mlps(model, where)
    if not found:
        raise ValueError(f"there is no MLP at '{where}' whose neurons could be predicted; write 'mlp'")
    return found


def hear(
    model: nn.Module,
    found: Sequence[Group],
    ids: Int[Tensor, "windows length"],
    method: Predictor,
    judge: Judge = next_token,
) -> dict[str, tuple[Float[Tensor, "tokens in"], Float[Tensor, "tokens neurons"]]]:
    """Of each MLP, by the name of its `down`: what its predictor hears, and how much each neuron truly matters."""
    ids, names = ids.to(device_of(model)), [m.reader.name for m in found]
    with at_rest(model), torch.set_grad_enabled(method.feels), _heard(found, method.feels) as (xs, hs):
        if method.feels:
            loss = judge(model, ids)
            mine = [hs[n] for n in names]
            slopes = torch.autograd.grad(loss, mine)
            worth = [(h * slope).detach().abs() for h, slope in zip(mine, slopes, strict=True)]
        else:
            model(input_ids=ids, use_cache=False)
            worth = [hs[n].abs() for n in names]
    x = [xs[names[0] if method.first else n] for n in names]
    return {n: (a.flatten(0, -2), b.flatten(0, -2)) for n, a, b in zip(names, x, worth, strict=True)}


def recalls(
    model: nn.Module, where: str, tokens: Int[Tensor, "windows length"], method: Predictor, budget: Budget
) -> dict[str, list[Score]]:
    """What a learnt predictor finds of the neurons that a budget keeps of the true scores, MLP by MLP, on `tokens`; beside what
    those of the token before would find (`previous`), and chance (`random`). Windows are measured from their second token on.
    """
    here = mlps_at(model, where)
    found: dict[str, list[Score]] = {"predicted": [], "previous": [], "random": []}
    make = torch.Generator().manual_seed(0)
    pieces = [hear(model, here, some, method) for some in tokens.split(4)]
    for name in (m.reader.name for m in here):
        x, worth = (torch.cat([p[name][i] for p in pieces]).unflatten(0, tokens.shape) for i in (0, 1))
        right = select(worth, budget)
        with torch.no_grad():
            said = select(method.at(name).score(x, Stats()), budget)
        drawn = select(torch.rand(worth.shape, generator=make), budget)
        for kind, guess in (("predicted", said[:, 1:]), ("previous", right[:, :-1]), ("random", drawn[:, 1:])):
            found[kind].append(set_recall(guess.flatten(0, 1).cpu(), right[:, 1:].flatten(0, 1).cpu()))
    return found


def _of(method: Predictor, parts: Parts, name: str) -> Predictor:
    return replace(method, file="", parts=Held({**parts.get(SHARED, {}), **parts[name]}))  # type: ignore[type-var]


@contextlib.contextmanager
def _heard(found: Sequence[Group], slopes: bool) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """What each MLP hears, and its hidden neurons; with `slopes`, those of the first are where gradients end."""
    xs: dict[str, Tensor] = {}
    hs: dict[str, Tensor] = {}

    def neurons(name: str, h: Tensor) -> tuple[Tensor]:
        hs[name] = h.detach().requires_grad_() if slopes and not h.requires_grad else h
        return (hs[name],)

    with contextlib.ExitStack() as stack:
        for mlp in found:
            name, writer, reader = mlp.reader.name, mlp.writers[0].module, mlp.reader.module
            keep = writer.register_forward_pre_hook(lambda _, args, n=name: xs.update({n: args[0].detach()}))
            stack.callback(keep.remove)
            stack.callback(reader.register_forward_pre_hook(lambda _, args, n=name: neurons(n, args[0])).remove)
        yield xs, hs
