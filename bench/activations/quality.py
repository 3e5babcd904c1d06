"""What gates cost a model's predictions: perplexity at several densities, beside random and dense, and what papers say of it.

    python -m bench.activations.quality [--model DIR] [--device cuda] [--out FILE]

The first quarter of each window is computed whole, as a prompt is; gates act on the rest, and the loss is that of the rest. Masks stand for
kernels here: the numbers are the same, no time is saved. Random is drawn anew for each map.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewer.activations import Gate, Remembering
from fewer.calibrate import Stats, observe
from fewer.core import Site
from fewer.core.budget import budget
from fewer.core.spell import method_of
from fewer.data import corpus, windows
from fewer.measure import Estimate, mean, paired, tail_cut
from fewer.measure.quality import at_rest
from fewer.models import open_model, sites
from fewer.models.tap import Tap, activations, hooked

from ._claims import CLAIMS, judged

DENSITIES = ("70%", "50%", "40%", "25%")
WHERE = {"all": "q, k, v, o, gate, up, down", "mlp": "up", "down": "down"}


@dataclass(frozen=True)
class Setting:
    """Which gate acts where, and how: `own` is each token's own best, `cut` one threshold a map, `tail` cuts of one tail error."""

    gate: str
    where: str  # all maps; mlp: the hidden neurons; down: what the last map of an MLP reads
    how: str = "own"

    @property
    def name(self) -> str:
        return f"{self.gate} {self.where} {self.how}"


SETTINGS = [
    *(Setting(g, "all") for g in ("random", "magnitude", "wina", "r_sparse", "r_sparse(low_rank=0.1)", "delta")),
    *(Setting(g, "all", "cut") for g in ("magnitude", "wina")),
    *(Setting(g, "mlp") for g in ("random", "cats", "chess", "core_neurons", "core_by_similarity")),
    *(Setting(g, "mlp", "cut") for g in ("cats", "chess")),
    *(Setting("wina", "down", how) for how in ("own", "cut", "tail")),
]


def gate_of(text: str) -> Gate:

    found = method_of(f"activations/{text}", "activations")
    assert isinstance(found, Gate)
    return found


class Gated:
    """A model with what gates must know of it: what its maps hear on calibration text."""

    def __init__(self, model: nn.Module, calibration: Tensor):
        self.model, self.calibration = model, calibration
        self.inputs: dict[str, Tensor] = {}
        self.known: dict[tuple[str, tuple[type, ...]], Stats] = {}

    def hears(self, tap: str) -> Tensor:
        if tap not in self.inputs:
            pieces = [activations(self.model, [Tap.read(tap)], some) for some in self.calibration.split(4)]
            self.inputs[tap] = torch.cat(pieces)
        return self.inputs[tap]

    def stats(self, m: Gate, site: Site) -> Stats:
        """What the gate asked to know of a map; found once."""
        if (site.name, m.needs) not in self.known:
            self.known[site.name, m.needs] = observe(m.needs, site.read().float(), self.hears(f"{site.name}:in"))
        return self.known[site.name, m.needs]

    def places(self, where: str) -> list[tuple[Site, str]]:
        """Each map with the tap whose tensor is gated: its input, or what the gate of its MLP opens."""
        found = sites(self.model, WHERE[where])
        if where != "mlp":
            return [(s, f"{s.name}:in") for s in found]
        return [(s, s.name.rpartition(".")[0] + ".act_fn") for s in found]

    @contextmanager
    def acting(self, setting: Setting, share: str, first: int, kept: list[float]) -> Iterator[None]:
        """While this is open the gates act on all tokens from `first` on."""
        changes: dict[Tap, Callable[[Tensor], Tensor]] = {}
        places = self.places(setting.where)
        cuts = self.cuts(setting, share, places)
        for i, (site, tap) in enumerate(places):
            m = gate_of(setting.gate)
            m = replace(m, seed=i) if setting.gate == "random" else m
            m = m.fit(self.hears(tap)) if isinstance(m, Remembering) else m
            one = One(m, share, self.stats(m, site), first, cuts and cuts[i], site.read(), kept)
            changes[Tap.read(tap)] = one.change
            if type(m).rest is not Gate.rest:
                changes[Tap.read(site.name)] = one.add
        with hooked(self.model, changes):
            yield

    def cuts(self, setting: Setting, share: str, places: Sequence[tuple[Site, str]]) -> list[float] | None:
        """One threshold a map on its gate's scores, met on calibration text; by equal tail error if asked."""
        if setting.how == "own":
            return None
        density, scores = float(budget(share).keep), []
        for site, tap in places:
            m = gate_of(setting.gate)
            scores.append(m.score(self.hears(tap), self.stats(m, site)).flatten())
        if setting.how == "cut":
            return [_quantile(s, 1 - density) for s in scores]
        low, high, best = 0.0, 1.0, [0.0]
        for _ in range(10):
            error = (low + high) / 2
            best = [tail_cut([self.hears(t)], s.read().float(), error) for s, t in places]
            there = sum((s >= c).double().mean().item() for s, c in zip(scores, best, strict=True)) / len(scores)
            low, high = (low, error) if there < density else (error, high)
        return best


def _quantile(x: Tensor, q: float) -> float:
    return x.kthvalue(max(1, math.ceil(q * x.numel()))).values.item()


@dataclass
class One:
    """One gate at one place: what the model goes on with."""

    gate: Gate
    share: str
    stats: Stats
    first: int
    cut: float | None
    w: Tensor
    kept: list[float]
    left: Tensor | None = None

    def change(self, x: Tensor) -> Tensor:
        b, start, late = budget(self.share), x[:, : self.first], x[:, self.first :]
        if isinstance(self.gate, Remembering):
            memory, said, share = self.gate.begin(start, b, self.stats), [], 0.0
            for t in range(late.shape[1]):
                keep, heard, memory = self.gate.next(late[:, t], memory, b, self.stats)
                said.append(heard)
                share += keep.double().mean().item() / late.shape[1]
            self.kept.append(share)
            return torch.cat([start, torch.stack(said, 1)], 1)
        keep = self.gate.gate(late, b, self.stats) if self.cut is None else self.gate.score(late, self.stats) > self.cut
        more = self.gate.always(*self.w.shape, b) / self.w.numel()
        self.kept.append(keep.double().mean().item() + more)
        self.left = late.where(~keep, 0)
        return torch.cat([start, late.where(keep, 0)], 1)

    def add(self, y: Tensor) -> Tensor:
        rest = self.gate.rest(self.left, budget(self.share), self.stats)
        return y if rest is None else torch.cat([y[:, : self.first], y[:, self.first :] + rest], 1)


def losses(model: nn.Module, tokens: Tensor, first: int, batch: int) -> Tensor:
    """The mean loss of each window, over the tokens after the first ones, in nats."""
    each = []
    for ids in tokens.split(batch):
        with at_rest(model):
            logits = model(input_ids=ids).logits[:, first - 1 : -1].float()
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, first:].flatten(), reduction="none")
        each.append(loss.view(len(ids), -1).double().mean(1).cpu())
    return torch.cat(each)


def row_of(setting: str, share: str, kept: float, loss: Tensor, dense: Tensor) -> dict[str, Any]:
    def times(e: Estimate) -> list[float]:
        return [math.exp(min(x, 700)) for x in (e.value, e.low, e.high)]

    value, low, high = times(mean(loss))
    ratio, least, most = times(paired(loss, dense))
    return {
        "setting": setting, "density": share, "kept": kept, "perplexity": value, "perplexity_low": low, "perplexity_high": high,
        "ratio": ratio, "ratio_low": least, "ratio_high": most, "losses": [round(x, 5) for x in loss.tolist()],
    }  # fmt: skip


def measured(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    model, tokenizer = open_model(args.model, device=args.device)
    draw = {part: windows(corpus("stdlib", part), tokenizer, args.length, count).to(args.device)
            for part, count in (("calibration", args.calibration), ("test", args.test))}  # fmt: skip
    gated, first = Gated(model, draw["calibration"]), args.length // 4
    dense = losses(model, draw["test"], first, args.batch)
    yield row_of("dense", "100%", 1.0, dense, dense)
    for setting in (s for s in SETTINGS if s.name.startswith(tuple(args.settings.split(",")))):
        for share in DENSITIES:
            kept: list[float] = []
            began = time.monotonic()
            with gated.acting(setting, share, first, kept):
                loss = losses(model, draw["test"], first, args.batch)
            yield row_of(setting.name, share, sum(kept) / len(kept), loss, dense) | {
                "seconds": time.monotonic() - began
            }


def told(rows: Iterator[dict[str, Any]], out: Path | None) -> Iterator[dict[str, Any]]:
    """The same rows, printed and written as they come."""
    if out:
        out.write_text("")
    for r in rows:
        print(
            f"{r['setting']:32} {r['density']:>4} kept {r['kept']:.3f}  {r['perplexity']:9.3f}  x{r['ratio']:.3f} "
            f"[{r['ratio_low']:.3f}, {r['ratio_high']:.3f}]  {r.get('seconds', 0):.0f} s",
            flush=True,
        )
        if out:
            with out.open("a") as file:
                file.write(json.dumps({k: v for k, v in r.items() if k != "seconds"}) + "\n")
        yield r


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Perplexity over dense, a line a setting."""
    names = list(dict.fromkeys(r["setting"] for r in rows if r["setting"] != "dense"))
    cell = {(r["setting"], r["density"]): f"{r['ratio']:.3g}" for r in rows}
    head = ["| gate, where, how | " + " | ".join(DENSITIES) + " |", "|---" * (len(DENSITIES) + 1) + "|"]
    return "\n".join(head + [f"| {n} | " + " | ".join(cell[n, d] for d in DENSITIES) + " |" for n in names])


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--model", default="bundled")
    ask.add_argument("--device", default="cpu")
    ask.add_argument("--length", type=int, default=512)
    ask.add_argument("--test", type=int, default=16)
    ask.add_argument("--calibration", type=int, default=4)
    ask.add_argument("--batch", type=int, default=8)
    ask.add_argument("--settings", default="", help="Only those whose name begins so, with commas.")
    ask.add_argument("--out", type=Path)
    ask.add_argument("--read", type=Path, help="Judge what was measured before.")
    args = ask.parse_args()
    if args.read:
        rows = [json.loads(line) for line in args.read.read_text().splitlines()]
    else:
        rows = list(told(measured(args), args.out))
    print("\n" + table(rows) + "\n")
    print("\n".join(judged(rows, CLAIMS)))


if __name__ == "__main__":
    main()
