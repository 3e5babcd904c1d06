"""What was measured of hidden neurons: its table, and one HTML file with the picture."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from .figure import COLORS, CONFIG, GREY
from .table import Column, Row, number, size

if TYPE_CHECKING:
    import altair

__all__ = ["NEURON_COLUMNS", "neurons_drawn", "neurons_page"]

_SHARE = "{:.1%}".format
NEURON_COLUMNS = (
    Column("layer", "layer", str),
    Column("neurons", "neurons", "{:d}".format),
    Column("density", "density", _SHARE, "share of neurons that are on, with its 95 % interval over windows; lower is better"),
    Column("median", "median token", _SHARE, "the density that half of all tokens do not exceed"),
    Column("busiest", "95 % of tokens", _SHARE, "the density that 95 % of all tokens do not exceed"),
    Column("hot", "carry 80 %", _SHARE, "the smallest share of neurons that carries 80 % of all activations"),
    Column("cold", "cold", _SHARE, "share of neurons that are on at fewer than 1 % of tokens"),
    Column("jaccard", "overlap", number, "neurons on at a token and the next, over those on at either; higher is better"),
    Column("chance", "by chance", number, "the same of tokens that have nothing to do with each other"),
    Column("run", "run", number, "tokens in a row at which a neuron stays on; higher is better"),
    Column("cett", "tail error", number, "what neurons that are off would have added, over the layer's output; lower is better"),
    Column("read", "bytes a token", size, "read of the MLP, if a token knew which neurons are on; lower is better"),
    Column("dense", "dense", size),
)  # fmt: skip
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ margin: 0 auto; max-width: 1200px; padding: 32px 28px 64px; color: #1b1f24; background: #fff; font: 15px/1.5 Inter, "Segoe UI", Arial, "Liberation Sans", sans-serif; }}
h1 {{ font-size: 25px; line-height: 1.25; margin: 0 0 18px; }} .scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; margin-top: 22px; }}
th, td {{ text-align: right; padding: 5px 10px; border-bottom: 1px solid #d9dde2; white-space: nowrap; }} th:first-child, td:first-child {{ text-align: left; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: 3px 18px; margin-top: 30px; }} dt {{ color: #5b6168; }} dd {{ margin: 0; }}
</style></head><body><h1>{title}</h1><div id="chart"></div><div class="scroll"><table>{table}</table></div><dl>{about}</dl>
<script>{vega}</script><script>vegaEmbed("#chart", {spec}, {{renderer: "svg", actions: false}});</script></body></html>
"""


def neurons_drawn(
    rows: Sequence[Row], ranked: Mapping[str, Sequence[float]], positions: Sequence[float]
) -> "altair.VConcatChart":
    """Four panels: density over layers, density over positions, how often each neuron is on (`ranked`, the hottest first,
    by layer), and the overlap of neighbouring tokens beside chance.
    """
    import altair as alt

    depth = [{**row, "at": i} for i, row in enumerate(rows)]
    base = alt.Chart(alt.Data(values=depth)).encode(x=alt.X("at:Q", title="layer", axis=alt.Axis(tickMinStep=1)))
    blue, red = alt.value(COLORS[0]), alt.value(COLORS[1])
    share = alt.Axis(format="%")
    tips = [alt.Tooltip(f"{c.field}:N", title=c.title) for c in NEURON_COLUMNS]
    lazy = (
        base.mark_area(opacity=0.2).encode(y=alt.Y("density_low:Q", axis=share, title="neurons that are on"), y2="density_high:Q", color=blue)
        + base.mark_line(point=True).encode(y="density:Q", color=blue, tooltip=tips)
    )  # fmt: skip
    places = [{"position": i, "density": d} for i, d in enumerate(positions)]
    along = alt.Chart(alt.Data(values=places)).mark_line(strokeWidth=1.5).encode(
        x=alt.X("position:Q", title="position in the window"), color=blue,
        y=alt.Y("density:Q", axis=share, title="neurons that are on", scale=alt.Scale(zero=False)),
    )  # fmt: skip
    hot = [
        {"at": i, "rank": r / max(len(f) - 1, 1), "frequency": x}
        for i, f in enumerate(ranked.values())
        for r, x in enumerate(f)
    ]
    heat = alt.Chart(alt.Data(values=hot)).mark_line(strokeWidth=1.5).encode(
        x=alt.X("rank:Q", title="neurons, the hottest first", axis=share),
        y=alt.Y("frequency:Q", title="on at this share of tokens", axis=share),
        color=alt.Color("at:Q", title="layer", scale=alt.Scale(scheme="viridis")), detail="at:N",
    )  # fmt: skip
    again = (
        base.mark_area(opacity=0.2).encode(y=alt.Y("jaccard_low:Q", title="overlap with the next token"), y2="jaccard_high:Q", color=red)
        + base.mark_line(point=True).encode(y="jaccard:Q", color=red, tooltip=tips)
        + base.mark_line(strokeDash=[5, 4]).encode(y="chance:Q", color=alt.value(GREY))
    )  # fmt: skip
    named = {
        "Lazy neurons: density over depth": lazy,
        "Density along the window, all layers": along,
        "Hot and cold neurons": heat,
        "Used again by the next token (dashed: by chance)": again,
    }
    a, b, c, d = (chart.properties(width=430, height=230, title=title) for title, chart in named.items())
    return alt.vconcat(alt.hconcat(a, b), alt.hconcat(c, d)).resolve_scale(color="independent").configure(**CONFIG)


def neurons_page(rows: Sequence[Row], chart: "altair.VConcatChart", says: str, about: Mapping[str, str]) -> str:
    """One HTML file that opens offline: the sentence, the picture, the table, what made it."""
    import vl_convert

    def told(key: str, value: str) -> str:
        return f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>"

    cells: list[Any] = [[c.cell(row) for c in NEURON_COLUMNS] for row in rows]
    head = "".join(f'<th title="{escape(c.about)}">{escape(c.title)}</th>' for c in NEURON_COLUMNS)
    body = "".join(f"<tr>{''.join(f'<td>{escape(x)}</td>' for x in row)}</tr>" for row in cells)
    return _PAGE.format(
        title=escape(says),
        table=f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>",
        about="".join(told(k, v) for k, v in about.items()),
        spec=json.dumps(chart.to_dict()).replace("</", "<\\/"),
        vega=vl_convert.javascript_bundle().replace("</script", "<\\/script"),
    )
