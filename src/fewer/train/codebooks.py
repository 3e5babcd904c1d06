"""Learning codebooks with a model: at some sites it goes on with the sum of a few codes, and gets used to it."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from fewer import kernels
from fewer.core import Budget
from fewer.features import Dictionary
from fewer.features.codebook import Codebook
from fewer.measure.quality import at_rest
from fewer.models.tap import activations, find_taps, hooked

from .kept import Kept
from .loop import Told, Training, train
from .masks import next_token
from .rate import Cosine
from .source import Windows

FIRST = 8  # batches from which codes begin
HOW = Training(1000, Cosine(1e-3, 1e-4), decay=0.0)

Book = Float[Tensor, "codes dim"]


def learn_codebooks(
    model: nn.Module,
    sites: Sequence[str],
    windows: Windows,
    codes: int,
    budget: Budget,
    how: Training = HOW,
    weight: float = 1.0,
    out: str | Path | None = None,
    told: Told | None = None,
    about: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[nn.Module, list[Dictionary]]:
    """A copy of the model that has learnt to work with codebooks, and these, one for each site (Tamkin et al. 2023, 2310.17230).

    At a site the hidden state a becomes C(a), the sum of the k codes nearest by cosine, and model and codes learn
        next-token loss + weight * mean over sites of |a - C(a)|^2 / dim,
    where the gradient by C(a) goes to the codes and, straight through, to a as if nothing had been in between, and the second
    term moves codes alone. The model must be run with all of its codebooks, by `spliced`, which then says to the bit what was
    learnt. `model` itself stays as it is.

    Differs from the paper: codes begin at hidden states far apart from one another (k-means++ by cosine), divided by k, where
    it draws them at random. With `out` a killed run goes on to the bit. ValueError: no such site, more codes than tokens.
    """
    twin = copy.deepcopy(model).requires_grad_(True)
    taps, k = find_taps(twin, sites), budget.of(codes)
    if not taps or (isinstance(budget.keep, int) and budget.keep > codes):
        raise ValueError(f"'{budget}' of {codes} codes at {len(taps)} sites: name a site, and keep at most all codes")
    first = torch.cat(windows.first(FIRST))
    books = {}
    for number, tap in enumerate(taps):
        with at_rest(twin):
            states = activations(twin, [tap], first).flatten(0, 1)
        books[tap] = (far_apart(states, codes, how.seed + number) / k).requires_grad_()
    costs: list[Tensor] = []

    def passed(x: Tensor, book: Book) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        said = book[nearest(rows, book, k)].sum(1)
        costs.append((said - rows.detach()).square().mean())
        return said.view_as(x) + (x - x.detach())

    def loss(ids: Tensor, progress: float) -> Tensor:
        costs.clear()
        with (
            at_rest(twin),
            torch.enable_grad(),
            hooked(twin, {tap: lambda x, book=book: passed(x, book) for tap, book in books.items()}),  # type: ignore[misc]
        ):
            found = next_token(twin, ids)
        return found + weight * torch.stack(costs).mean()

    parameters = {f"model/{name}": p for name, p in twin.named_parameters()}
    parameters |= {f"codes/{tap}": book for tap, book in books.items()}
    key = f"codebooks {list(map(str, taps))} {codes} {budget} {how} {weight} {float(states.double().sum())!r}"
    train(parameters, loss, windows, how, Kept(out, key) if out else None, told)
    note = {**about, "tokens": how.steps * how.accumulate * windows.batch * windows.windows.shape[1]}
    twin.requires_grad_(False)
    return twin, [of_book(book.detach(), budget, str(tap), note) for tap, book in books.items()]


def of_book(book: Book, budget: Budget, site: str, about: Mapping[str, Any] = MappingProxyType({})) -> Dictionary:
    """The codes as a dictionary: what it writes is the sum of k rows of the book, and nothing else."""
    none = book.new_zeros(len(book)), book.new_zeros(book.shape[1])
    return Dictionary(
        Codebook(), budget, F.normalize(book, dim=1), none[0], book, none[1], {}, None, (site,), (site,), about
    )


def nearest(states: Float[Tensor, "n dim"], book: Book, k: int) -> Int64[Tensor, "n k"]:
    """The k codes of largest cosine with each state."""
    with torch.no_grad():
        return kernels.encode(states, F.normalize(book, dim=1), book.new_zeros(len(book)), k, False)[0]


def far_apart(states: Float[Tensor, "n dim"], count: int, seed: int) -> Book:
    """Some of the states, each drawn with a chance of 1 less its largest cosine with those before; copies may be taken if
    all directions are.

    >>> x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    >>> sorted(far_apart(x, 2, seed=0).argmax(1).tolist())
    [0, 1]
    """
    if len(states) < count:
        raise ValueError(f"{count} codes begin at {len(states)} hidden states: give more text, or fewer codes")
    draw = torch.Generator(states.device).manual_seed(seed)
    way = F.normalize(states, dim=1)
    at = [int(torch.randint(len(states), (), generator=draw, device=states.device))]
    left = torch.ones(len(states), device=states.device)
    while len(at) < count:
        left = torch.minimum(left, (1 - way @ way[at[-1]]).clamp(min=0))
        chance = left if left.sum() > 1e-6 * len(left) else torch.ones_like(left)
        at.append(int(chance.multinomial(1, generator=draw)))
    return states[torch.tensor(at, device=states.device)].detach().clone().float()
