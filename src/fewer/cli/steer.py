"""fewer steer: edits of a dictionary's latents, kept as a small artefact, and what a model writes under them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ._print import Json, lines, note

WHAT = "A dictionary, with --edit; or a steering that was written."
EDIT = "'add 7 4' (4 more, at every token), 'set 7 4', 'scale-when-active 7 0', 'clamp-when-active 7 -20'; repeat for several."
OUT = "Write the steering here: the edits, and of the dictionary only the rows that they need."
PROMPT = "Let the model go on from this text, as it is and steered."
MODEL = "'bundled', a directory, or a name on the hub; what the dictionary says by default."


def steer(
    what: Annotated[str, typer.Argument(help=WHAT)],
    edit: Annotated[list[str] | None, typer.Option(help=EDIT)] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help=OUT)] = None,
    prompt: Annotated[str | None, typer.Option(help=PROMPT)] = None,
    model: Annotated[str | None, typer.Option(help=MODEL)] = None,
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens to go on for; the likeliest each time.")] = 30,
    force: Annotated[bool, typer.Option("--force", help="Replace a steering at OUT.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: Json = False,
) -> None:
    """Steer a model by single latents of a dictionary, and keep the steering: it works without the dictionary.

    Examples: `fewer steer sae --edit "add 7 4" -o steering --prompt "def "` · `fewer steer steering --prompt "import "`
    """
    from fewer.dictionaries import load
    from fewer.dictionaries.steering import NOTE, Steering

    from .judge import model_for

    ready = (Path(what) / NOTE).is_file()
    if (ready and edit) or (not ready and not edit):
        raise ValueError(f"{what}: " + ("a steering has its edits, leave --edit out" if ready else f"write {EDIT}"))
    if out is None and prompt is None:
        raise ValueError("nothing to do: write --out to keep the steering, --prompt to hear it, or both")
    found = Steering.load(what) if ready else Steering.cut(load(what), [_edit(text) for text in edit or ()])
    if out is not None:
        found.save(out, force)
        size = sum(f.stat().st_size for f in out.iterdir())
        note(
            f"written: {out}, {size:,} bytes, latents {', '.join(map(str, found.latents[:8]))} of dictionary {found.of[:12]}"
        )
    if prompt is None:
        return
    _, opened, tokenizer = model_for(what, [found.dictionary], model, device, "a prompt is text")
    plain = _continued(opened, tokenizer, prompt, tokens)
    with found.on(opened):
        steered = _continued(opened, tokenizer, prompt, tokens)
    rows = [{"name": "plain", "text": plain}, {"name": "steered", "text": steered}]
    if json:
        return lines(rows)
    for row in rows:
        print(f"{row['name']}:\n{row['text']}\n")


def _edit(text: str) -> Any:
    """An edit as people write it.

    >>> _edit("clamp-when-active 7 -20")
    ClampWhenActive(latent=7, to=-20.0)
    """
    from fewer.dictionaries.steer import EDITS

    known = {"-".join(_words(name)): kind for name, kind in EDITS.items()}
    parts = text.split()
    try:
        name, latent, amount = parts
        return known[name.lower()](int(latent), float(amount))
    except (ValueError, KeyError) as wrong:
        raise ValueError(
            f"--edit {text!r}: write one of {', '.join(known)}, a latent's number, and how much"
        ) from wrong


def _words(name: str) -> list[str]:
    """>>> _words("ClampWhenActive")
    ['clamp', 'when', 'active']
    """
    return "".join(f" {c.lower()}" if c.isupper() else c for c in name).split()


def _continued(model: Any, tokenizer: Any, prompt: str, tokens: int) -> str:
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"].to(next(model.parameters()).device)
    end = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    said = model.generate(ids, do_sample=False, max_new_tokens=tokens, pad_token_id=end)
    return str(tokenizer.decode(said[0], skip_special_tokens=True))
