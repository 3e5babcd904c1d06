"""The page of selections side by side, written from what `bench.features.frontier` measured."""

import pathlib
from dataclasses import dataclass

from ._others import sections

DOCS = pathlib.Path(__file__).parents[2] / "docs"
FLOORS = ("random", "pca")


@dataclass(frozen=True)
class Claim:
    """`better` misses less of the variance than `than`, at most `1 + slack` times as much, at these budgets."""

    paper: str
    says: str
    better: str
    than: str
    slack: float = 0.0
    ks: tuple[int, ...] = (4, 8, 16, 32, 64)


CLAIMS = (
    Claim("2406.04093", "TopK reconstructs better than ReLU with L1 at equal L0.", "top_k", "relu_l1"),
    Claim("2407.14435", "JumpReLU reconstructs at least as well as Gated at equal L0.", "jump_relu", "gated"),
    Claim("2407.14435", "JumpReLU reconstructs at least as well as TopK at equal L0.", "jump_relu", "top_k"),
    Claim("2412.06410", "BatchTopK reconstructs better than TopK.", "batch_top_k", "top_k"),
    Claim("2412.06410", "BatchTopK is comparable to JumpReLU (here: within 5 %).", "batch_top_k", "jump_relu", 0.05),
    Claim("2411.02124", "Mutual Choice reconstructs better than TopK.", "mutual_choice", "top_k"),
    Claim("2411.02124", "Feature Choice reconstructs better than TopK.", "feature_choice", "top_k"),
    Claim("2510.00404", "AbsTopK reconstructs better than TopK.", "abs_top_k", "top_k"),
    Claim("2510.00404", "AbsTopK reconstructs better than JumpReLU.", "abs_top_k", "jump_relu"),
    Claim(
        "2505.24473",
        "One HierarchicalTopK is as good at every k as a TopK of its own (here: within 2 %).",
        *("hierarchical_top_k", "top_k", 0.02, (8, 16, 32, 64)),
    ),
    Claim("2508.17320", "AdaptiveK reconstructs better than TopK at equal mean L0.", "adaptive_k", "top_k"),
    Claim("2506.03093", "Matching pursuit reconstructs better than TopK.", "matching_pursuit", "top_k"),
)


def page(found: list[dict]) -> None:
    """docs/dictionaries.md and docs/img/dictionaries.svg."""
    rows = [row for part in found for row in part["rows"] if row["method"] != "dense"]
    of = {(row["method"], row["k"]): row for row in rows}
    about = found[0]["about"]
    learnt = sorted({m for m, _ in of} - set(FLOORS), key=lambda m: of[m, 8]["fvu"])
    _figure([of[key] for key in of if key[0] in (*learnt, *FLOORS)])
    text = [
        "# Dictionaries side by side",
        "",
        f"The bundled 10M model, residual stream after layer 4 (256 wide), {about['latents']:,} latents, {about['steps']} steps of 2,048 tokens "
        f"from {about['tokens']:,} tokens of the standard library; each at the rates {', '.join(map(str, about['rates']))}, of which the one "
        f"counts that misses less of unseen text. Judged on 64 windows of 256 tokens of other modules, special tokens left "
        f"alone. {about['device']}, torch {about['torch']}; `python -m bench.features.frontier --device cuda` in four parts and by name, then `--table`.",
        "",
        "![Cross entropy recovered against L0](img/dictionaries.svg)",
        "",
        "Cross entropy recovered against mean ablation, with half the 95 % interval, and the share of the variance missed (FVU); L0 as "
        "measured on the test text, where it is not k.",
        "",
        "| selection | " + " | ".join(f"k = {k}" for k in (4, 8, 16, 32, 64)) + " |",
        "|---|" + "---|" * 5,
        *(
            f"| {m} | " + " | ".join(_cell(of.get((m, k)), k) for k in (4, 8, 16, 32, 64)) + " |"
            for m in (*learnt, *FLOORS)
        ),
        "",
        "hierarchical_top_k is one dictionary, learnt at 64 and served at each k. random and pca are the controls of "
        "`fewer judge`. relu_l1 and gated learn the weight of their penalty, which needs more steps than the others' exact "
        "budgets: these rows are of a short run, not of what they come to.",
        "",
        "Latents that speak at no token of the test text:",
        "",
        "| selection | " + " | ".join(f"k = {k}" for k in (4, 8, 16, 32, 64)) + " |",
        "|---|" + "---|" * 5,
        *(f"| {m} | " + " | ".join(_dead(of.get((m, k))) for k in (4, 8, 16, 32, 64)) + " |" for m in learnt),
        "",
        "## What papers claim",
        "",
        "By the share of the variance that is missed, at equal k.",
        "",
        "| paper | claim | here | verdict |",
        "|---|---|---|---|",
        *(_verdict(claim, of) for claim in CLAIMS),
        "",
        *sections(),
    ]
    (DOCS / "dictionaries.md").write_text("\n".join(text))


def _cell(row: dict | None, k: int) -> str:
    if row is None:
        return ""
    half = (row["recovered_mean_high"] - row["recovered_mean_low"]) / 2
    l0 = "" if abs(row["l0"] / k - 1) < 0.005 else f", L0 {row['l0']:.3g}"
    return f"{row['recovered_mean']:.4f} ± {half:.4f}, FVU {row['fvu']:.3f}{l0}"


def _dead(row: dict | None) -> str:
    return "" if row is None else f"{row['dead']:.0%}"


def _verdict(claim: Claim, of: dict) -> str:
    ratios = [of[claim.better, k]["fvu"] / of[claim.than, k]["fvu"] - 1 for k in claim.ks]
    good = sum(r <= claim.slack for r in ratios)
    word = {len(ratios): "**holds**", 0: "**does not hold here**"}.get(good, f"**in part**: at {good} of {len(ratios)}")
    link = f"[{claim.paper}](https://arxiv.org/abs/{claim.paper})"
    return f"| {link} | {claim.says} | {', '.join(f'{r:+.0%}' for r in ratios)} at {', '.join(map(str, claim.ks))} | {word} |"


def _figure(rows: list[dict]) -> None:
    import altair

    from fewer.report.figure import picture

    data = [{"selection": r["method"], "L0": r["l0"], "lost": 1 - r["recovered_mean"]} for r in rows]
    base = altair.Chart(altair.Data(values=data)).encode(
        altair.X(
            "L0:Q", scale=altair.Scale(type="log", domain=[3, 80], nice=False), title="latents that speak, a token"
        ),
        altair.Y(
            "lost:Q",
            scale=altair.Scale(type="log", domain=[5e-4, 1], nice=False),
            title="cross entropy not recovered, of mean ablation's",
        ),
        altair.Color("selection:N", scale=altair.Scale(scheme="category20")),
    )
    (DOCS / "img").mkdir(exist_ok=True)
    chart = altair.layer(base.mark_line(), base.mark_point(filled=True, size=50)).properties(width=560, height=380)
    picture(chart, DOCS / "img" / "dictionaries.svg")
