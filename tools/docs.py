"""A page for every method, made from its class when the site is built; nothing generated is ever committed.

mkdocs calls the two hooks at the end. `pages()` is all of it as text, so that tests can read what readers will.
"""

import dataclasses
import importlib
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fewer.core import Method, Paper, axes, find, methods
from tools.floors import SOURCE
from tools.measured import section

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

EXAMPLE = re.compile(r"(?:^>>> .*\n?)(?:^(?!\s*$).*\n?)*", re.M)
DIFFERS = re.compile(r"^Differs from the paper: (?P<how>.*(?:\n(?!\s*$).*)*)", re.M)
USE = {  # how a step says it, by what the method is
    "Pruner": "{name} 50%",
    "Allocator": "weights/magnitude 50% by {short}",
    "Corrector": "weights/magnitude 50% + {short}",
    "Slimmer": "{name} 50% @ mlp",
    "Mixer": "{name} 100%",
    "Refresher": "attention/quest 2048 + {short}",
    "Form": "cache/snap_kv 25% + {short}",
    "Learnt": "{name}(file=masks.npz) 2:4",
}


def pages() -> dict[str, str]:
    """Markdown by address: one page a method, one an axis, one for all, one for the papers."""
    found = {axis: [find(name) for name in methods(axis)] for axis in axes()}
    out = {"methods/index.md": _all_page(found), "papers.md": _papers_page(found)}
    for axis, classes in found.items():
        out[f"methods/{axis}/index.md"] = _axis_page(axis, classes)
        out |= {f"methods/{m.name}.md": _method_page(m) for m in classes}
    return out


def rule(m: type[Method]) -> str:
    """The first sentence of a method's docstring, fit for a table."""
    return _safe((m.__doc__ or "").strip().splitlines()[0]).replace("|", "\\|")


def kind(m: type[Method]) -> str:
    """What the method is to its axis: `Pruner`, `Corrector`, `Router` ..."""
    return next(c.__name__ for c in m.__mro__ if Method in c.__bases__)


def _safe(text: str) -> str:
    return text.replace("<", "&lt;")


def _markdown(docstring: str) -> str:
    """Prose stays prose; worked examples become code; differences stand out."""
    parts, at = [], 0
    for example in EXAMPLE.finditer(docstring):
        parts += [_prose(docstring[at : example.start()]), f"```pycon\n{example.group().rstrip()}\n```"]
        at = example.end()
    return "\n\n".join(part for part in [*parts, _prose(docstring[at:])] if part)


def _prose(text: str) -> str:
    def note(match: re.Match[str]) -> str:
        how = match["how"][0].upper() + match["how"][1:]
        return '!!! note "Differs from the paper"\n    ' + how.replace("\n", "\n    ")

    return DIFFERS.sub(note, _safe(text)).strip()


def _cite(paper: Paper) -> str:
    what = "doi " if paper.id.startswith("10.") else "" if paper.id == paper.url else "arXiv "
    rest = f", {paper.equation}" if paper.equation else ""
    known = f" · ledger {paper.ledger}" if paper.ledger is not None else ""
    return f"[{_safe(paper.title)}]({paper.url}) ({what}{paper.id}, {paper.year}){rest}{known}"


def _parameters(m: type[Method]) -> Iterator[str]:
    fields = dataclasses.fields(m)  # type: ignore[arg-type]  # `@method` makes every method a dataclass
    if not fields:
        yield "None."
        return
    yield from ("| name | type | default |", "|---|---|---|")
    for field in fields:
        of = field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)
        default = "required" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
        yield f"| `{field.name}` | `{of}` | {default} |".replace(" | None", " \\| None")


def _needs(m: type[Method]) -> Iterator[str]:
    if not m.needs:
        yield "Nothing: no data is read."
    for stat in m.needs:
        said = (stat.__doc__ or "").strip().splitlines()
        yield f"- `{stat.__name__}`: {_safe(said[0]) if said else 'see its source'}"


def _use(m: type[Method]) -> str:
    axis, _, short = m.name.partition("/")
    if not (SOURCE / axis / "_act.py").exists():
        return "The engine of this axis is still to come: the method can be called and checked, not yet applied to a model."
    step = USE.get(kind(m), "{name} 50%").format(name=m.name, short=short)
    return f'```bash\nfewer sparsify MODEL "{step}" -o OUT\n```'


def _method_page(m: type[Method]) -> str:
    file = SOURCE / f"{m.name}.py"
    source = file.read_text(encoding="utf-8") if file.exists() else inspect.getsource(m)
    return "\n\n".join(
        [
            f"# {m.__name__}",
            f"`{m.name}` · a `{kind(m)}` of [{m.name.partition('/')[0]}](index.md)",
            _markdown(inspect.getdoc(m) or ""),
            f"**Paper.** {_cite(m.paper)}",
            "## Use",
            _use(m),
            f"```bash\nfewer show {m.name}\nfewer check {m.name}\n```",
            "## Hyper-parameters",
            "\n".join(_parameters(m)),
            "## What it must know of the data",
            "\n".join(_needs(m)),
            *([f"## Measured\n\n{rows}"] if (rows := section(m.name)) else []),
            f"## Source\n\n`src/fewer/{m.name}.py`, {len(source.splitlines())} lines",
            f"```python\n{source.rstrip()}\n```\n",
        ]
    )


def _axis_page(axis: str, classes: list[type[Method]]) -> str:
    protocol: Any = importlib.import_module(f"fewer.{axis}._protocol")
    homes = [protocol] + [
        importlib.import_module(f"fewer.{axis}._mixer") for _ in {"Mixer"} & {kind(m) for m in classes}
    ]
    verbs = [
        f"- `{name}.{verb}{inspect.signature(getattr(c, verb))}`"
        for home in homes
        for name, c in vars(home).items()
        if inspect.isclass(c) and c.__module__ == home.__name__ and Method in c.__bases__
        for verb in vars(c)
        if verb in getattr(c, "__abstractmethods__", ()) and callable(getattr(c, verb))
    ]
    rows = [f"| [{m.name}]({m.name.partition('/')[2]}.md) | {kind(m)} | {rule(m)} | {m.paper.year} |" for m in classes]
    return "\n\n".join(
        [
            f"# {axis}",
            _markdown(inspect.getdoc(protocol) or ""),
            "The verb, as it is called:",
            "\n".join(_signature(verb) for verb in verbs),
            "\n".join(["| method | is a | rule | year |", "|---|---|---|---|", *rows]) + "\n",
        ]
    )


def _signature(verb: str) -> str:
    """Shorter types: `Float[Tensor, 'out in']` for the reader, not its module path."""
    return re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", verb)


def _all_page(found: dict[str, list[type[Method]]]) -> str:
    total = sum(map(len, found.values()))
    text = [f"# Methods\n\n{total} methods on {len(found)} axes; `fewer methods` lists the same."]
    for axis, classes in found.items():
        rows = [f"| [{m.name}]({m.name}.md) | {rule(m)} |" for m in classes]
        text += [f"## [{axis}]({axis}/index.md)", "\n".join(["| method | rule |", "|---|---|", *rows])]
    return "\n\n".join(text) + "\n"


def _papers_page(found: dict[str, list[type[Method]]]) -> str:
    by_paper: dict[Paper, list[str]] = defaultdict(list)
    for classes in found.values():
        for m in classes:
            by_paper[m.paper].append(f"[{m.name}](methods/{m.name}.md)")
    papers = sorted(by_paper, key=lambda p: (-p.year, p.title))
    rows = [
        f"| {p.year} | [{_safe(p.title)}]({p.url}) | {'' if p.ledger is None else p.ledger} | {', '.join(by_paper[p])} |"
        for p in papers
    ]
    head = "# Papers\n\nEvery paper that a method cites, newest first. `ledger` is its number in the survey this house was built from."
    return "\n".join([head, "", "| year | paper | ledger | methods |", "|---|---|---|---|", *rows, ""])


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Put the generated pages among the written ones, and into the navigation."""
    from mkdocs.structure.files import File

    made = pages()
    for address, text in made.items():
        files.append(File.generated(config, address, content=text))
    section: list[Any] = [{"All": "methods/index.md"}]
    for axis in axes():
        here = [
            address for address in made if address.startswith(f"methods/{axis}/") and not address.endswith("index.md")
        ]
        section.append({axis: [f"methods/{axis}/index.md", *here]})
    config.nav = [*(config.nav or []), {"Methods": section}, {"Papers": "papers.md"}]
    return files
