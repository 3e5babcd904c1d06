"""fewer measure: how good a model is, and what it costs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ._print import Json, lines, table
from ._text import Data, Length, Test, needed


def measure(
    model: Annotated[
        str, typer.Argument(help="'bundled', a directory (sparse ones too), or a name on the hub.")
    ] = "bundled",
    against: Annotated[
        str | None, typer.Option(help="A model to compare with: adds KL and the change of perplexity.")
    ] = None,
    data: Data = "stdlib",
    test: Test = 24,
    length: Length = 512,
    json: Json = False,
) -> None:
    """Measure a model: perplexity on unseen text with its 95 % interval, bytes, FLOPs a token, seconds, peak memory.

    Examples: `fewer measure bundled` · `fewer measure smaller --against bundled`
    """
    from fewer.data import corpus, windows

    opened, tokenizer = _opened(model)
    needed(tokenizer, model, "only language models can be measured, on text")
    tokens = windows(corpus(data, "test"), tokenizer, length, test)
    rows = [*_quality(opened, _opened(against)[0] if against else None, tokens), *_cost(model, opened, tokens[:1])]
    if json:
        return lines({"model": model, **row} for row in rows)
    table(["measure", "here", "of what"], [[r["name"], r["text"], r["about"]] for r in rows], wrap=["of what"])


def _opened(model: str) -> tuple[Any, Any]:
    from fewer.models import open_model
    from fewer.models.opening import locate

    place = Path(locate(model))
    if (place / "probe.safetensors").is_file():
        from fewer.recipe import load

        load(place)  # answers as when it was saved, or a ValueError
    return open_model(model)


def _quality(model: Any, dense: Any, tokens: Any) -> list[dict[str, Any]]:
    import torch

    from fewer.measure import Reference, nll, paired, perplexity, quality

    shape = f"{len(tokens)} test windows of {tokens.shape[1]} tokens"
    if dense is None:
        return [_estimate("perplexity", perplexity(model, tokens), shape)]
    found = quality(model, Reference.of(dense, tokens), tokens)
    apart = paired(found.nll, nll(dense, tokens))
    times = [torch.tensor(x).exp().item() for x in (apart.value, apart.low, apart.high)]
    return [
        _estimate("perplexity", found.perplexity, shape),
        _row(
            "perplexity, times",
            times[0],
            f"{times[0]:.4g} [{times[1]:.4g}, {times[2]:.4g}]",
            "against, paired by window",
        ),
        _estimate("KL", found.kl, "nats a token, from the model it is compared with"),
    ]


def _cost(name: str, model: Any, window: Any) -> list[dict[str, Any]]:
    from fewer.measure import bytes_of, flops, peak_memory, seconds, useful_flops
    from fewer.measure.quality import at_rest
    from fewer.models.opening import locate
    from fewer.report.table import size

    def forward() -> None:
        with at_rest(model):
            model(input_ids=window)

    place, tokens = Path(locate(name)), window.numel()
    stored = sum(f.stat().st_size for f in place.glob("*.safetensors") if f.name != "probe.safetensors")
    forward()
    peak, time = peak_memory(forward), seconds({name: forward}, rounds=5, warmup=1)[name]
    total, useful = flops(model, window) / tokens, useful_flops(model, window) / tokens
    return [
        *([_row("bytes on disk", stored, size(stored), "its weights, indices included")] if stored else []),
        _row("bytes in memory", bytes_of(model), size(bytes_of(model)), "opened in float32"),
        _row("FLOPs a token", total, f"{total:.3g}", f"counted over {tokens} tokens, attention included"),
        _row("useful FLOPs", useful, f"{useful:.3g}", "the same without multiplications by zeros"),
        _row("peak memory", peak, size(peak), f"above the weights, for {tokens} tokens"),
        _row("seconds", time.median, str(time), f"for {tokens} tokens, the median of {time.n} with quartiles"),
    ]


def _estimate(name: str, found: Any, about: str) -> dict[str, Any]:
    return {**_row(name, found.value, str(found), about), "low": found.low, "high": found.high}


def _row(name: str, value: float, text: str, about: str) -> dict[str, Any]:
    return {"name": name, "value": value, "text": text, "about": about}
