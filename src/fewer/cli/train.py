"""fewer train: learn what no formula says."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from ._print import Json
from ._text import Data, Length
from ._train_dictionary import Wanted, dictionary
from ._train_job import Job
from ._train_masks import masks
from ._train_options import (
    Accumulate,
    Activation,
    Batch,
    Board,
    Boost,
    Decoder,
    Encoder,
    From,
    Groups,
    Hide,
    Latents,
    Loss,
    Prior,
    Seeds,
    Share,
    Site,
    Skip,
    Start,
    Steps,
    Store,
    Test,
    To,
    Tokens,
    Where,
    Whole,
    Windows,
)
from ._train_running import running

WHAT = "What learns: features/top_k, weights/mask_llm, attention/seer, activations/q_sparse, with fields if you like."
OUT = "What to write: a directory for a dictionary or a model, .npz for masks, .safetensors for attention."
FORCE = "Replace OUT if it exists, once the new one is whole, and what a run with other settings left of it."
RATE = "Learning rate; by default one that fits what is learnt."
MODEL = "'bundled', a directory, or a name on the hub."


def train(
    method: Annotated[str, typer.Argument(help=WHAT)],
    budget: Annotated[str, typer.Argument(help="How much may stay: 32 latents a token; 2:4 weights.")],
    out: Annotated[Path, typer.Option("--out", "-o", help=OUT)],
    model: Annotated[str, typer.Option(help=MODEL)] = "bundled",
    force: Annotated[bool, typer.Option("--force", help=FORCE)] = False,
    rate: Annotated[float | None, typer.Option(min=0, help=RATE)] = None,
    length: Length = 256,
    data: Data = "stdlib",
    seed: Annotated[int, typer.Option(help="Of noise, first values and text.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    site: Site = None,
    to: To = None,
    latents: Latents = None,
    tokens: Tokens = 500_000,
    test: Test = 64,
    seeds: Seeds = 1,
    store: Store = None,
    share: Share = "rows",
    skip: Skip = False,
    keep: Loss = "error",
    begin: From = None,
    boost: Boost = None,
    groups: Groups = None,
    encoder: Encoder = "features/linear",
    decoder: Decoder = "features/free",
    start: Start = "features/isotropic",
    hide: Hide = 0.0,
    where: Where = "*",
    prior: Prior = None,
    steps: Steps = 200,
    batch: Batch = 4,
    accumulate: Accumulate = 1,
    windows: Windows = 1024,
    whole: Whole = False,
    activation: Activation = None,
    tensorboard: Board = None,
    json: Json = False,
) -> None:
    """Learn a method on text and write what was learnt: beside the frozen model, or, for a gate or with --whole, a model that computes so.

    A killed run goes on where it was with the same command. Each step is a line in OUT.jsonl. A dictionary is judged once it is
    written, on text that it has not seen, as `fewer judge` does it. Under `torchrun -m fewer train ...` processes share one
    dictionary; only learning is shared.

    Examples: `fewer train features/top_k 32 --site layers.4 -o sae` · `fewer train features/top_k 32 --store store -o sae` · `fewer train features/top_k 32 --site layers.4 --loss kl --from sae -o through` · `fewer train features/batch_top_k 5 --boost sae --data hf:owner/law/train:text -o both` · `fewer train features/top_k 32 --site "layers.*" --groups 3 -o groups` · `fewer train weights/mask_llm 2:4 -o masks.npz --prior "weights/sparse_gpt 2:4"`, then `fewer sparsify bundled "weights/mask_llm(file=masks.npz) 2:4" -o smaller` · `fewer train attention/seer 10% -o gates.safetensors`, then `attention/seer(file=gates.safetensors) 10%` is a step · `fewer train activations/q_sparse 50% -o model`, then `activations/q_sparse 50%` is a step on `model`
    """
    pupil, kept, axis = _read(method, budget)
    _check(out, force)
    with _events(tensorboard) as board:
        if axis == "features":
            sites, words = (tuple(site or ()), tuple(to or ())), (encoder, decoder, start)
            other = (words, hide, keep, begin, boost, groups, seeds, store, share)
            wanted = Wanted(*sites, latents, tokens, rate, seed, skip, test, *other)
            return dictionary(pupil, kept, model, out, (data, length), wanted, device, force, json, board)  # type: ignore[arg-type]
        text, run = (data, windows, length), (steps, rate or 5e-4, batch, accumulate, seed)
        job = Job(pupil, kept, model, out, *text, *run, where, device, force, json, board)
        masks(job, prior) if axis == "weights" else running(job, whole, activation)


def _read(method: str, budget: str) -> tuple[Any, Any, str]:
    from fewer.core import budget as amount
    from fewer.core.spell import method_of

    return method_of(method, axis := _axis(method)), amount(budget), axis


def _axis(method: str) -> str:
    if (axis := method.partition("/")[0]) not in ("features", "weights", "attention", "activations"):
        raise ValueError(
            f"{method}: what learns here is features/... (a dictionary), weights/... (masks), attention/... (what is read) or "
            "activations/... (a model that computes less)"
        )
    return axis


def _events(place: Path | None) -> Any:
    from fewer.train import Board as Events

    return Events(place) if place else nullcontext()


def _check(out: Path, force: bool) -> None:
    """Refuse, before minutes of work, what cannot be written."""
    if not out.absolute().parent.is_dir():
        raise ValueError(f"{out.parent} is no directory to write {out.name} in")
    if out.exists() and not force:
        raise ValueError(f"{out} exists; write --force to replace it once the new one is whole")
