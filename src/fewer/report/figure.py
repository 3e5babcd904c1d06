"""Quality against cost, one line a method: the chart, and the same as PNG and SVG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .finding import finding, measured, scales
from .table import Row, columns_of

if TYPE_CHECKING:
    import altair

COSTS = {
    "bits": "bits stored per weight, indices included",
    "bytes_after": "bytes of the model as stored",
    "kept": "share kept: of weights, or of tokens read and remembered",
    "held": "bytes remembered, share of dense",
    "flops": "useful FLOPs, share of dense",
    "seconds": "seconds to apply and measure",
}
QUALITIES = {
    "perplexity": "perplexity on unseen text",
    "ratio": "perplexity, times dense",
    "kl": "KL to dense, nats a token",
    "wrong": "share of questions answered wrongly",
}
LINEAR = ("wrong",)  # may be 0
FORMATS = {"held": "~g", "bits": "~g", "bytes_after": "~s", "kept": "~%", "flops": "~%", "seconds": "~g"}
# Okabe and Ito's colours, which people with any colour vision tell apart; black and grey belong to the controls.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1")
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down")  # 7 and 5: 35 pairs before one comes again
GREY = "#8A8F98"
TICKS = [digit * 10.0**power for power in range(-5, 9) for digit in (1, 2, 5)]


def looks(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Colour and shape of each method, best first, controls last."""
    quality = scales(rows)[1]
    there = measured(rows, quality)
    names = dict.fromkeys(row["method"] for row in sorted(there, key=lambda row: row[quality]))
    controls = {row["method"] for row in there if row.get("control")}
    ours = sorted((name for name in names if name not in controls), key=lambda name: _mean_rank(there, name, quality))
    looks = {name: (COLORS[i % len(COLORS)], SHAPES[i % len(SHAPES)]) for i, name in enumerate(ours)}
    return looks | {name: (GREY, "cross") for name in names if name in controls and name != "dense"}


def _mean_rank(rows: Sequence[Row], name: str, quality: str) -> float:
    """How good a method is where it was measured: the mean place among the methods of each budget."""
    places = []
    for budget in {row["budget"] for row in rows if row["method"] == name}:
        order = sorted((row[quality], row["method"]) for row in rows if row["budget"] == budget)
        places.append([m for _, m in order].index(name) / len(order))
    return sum(places) / len(places)


def records(rows: Sequence[Row], cost: str, quality: str) -> list[dict[str, Any]]:
    """What the chart draws: the row, the two numbers it is drawn by, and its cells as people read them."""
    columns = columns_of(rows)
    return [
        {
            **{f"{c.field} as read": c.cell(row) for c in columns},
            **row,
            "cost": row[cost],
            "quality": row[quality],
            "low": row.get(f"{quality}_from", row.get(f"{quality}_low", row[quality])),
            "high": row.get(f"{quality}_to", row.get(f"{quality}_high", row[quality])),
            "grouped": ":" in row["budget"],
        }
        for row in measured(rows, quality)
        if row.get(cost) is not None
        and (row[quality] > 0 or quality in LINEAR)  # else the axis is logarithmic; only dense's KL to itself is 0
    ]


def figure(rows: Sequence[Row], about: Mapping[str, str], cost: str = "", quality: str = "") -> "altair.LayerChart":
    """The chart of one cost and one quality, both of them fields of the rows.

    The spec names its data's fields `cost`, `quality`, `low` and `high`, so that a page can draw another pair with it.
    """
    import altair as alt

    usual = scales(rows)
    cost, quality = cost or usual[0], quality or usual[1]
    style = looks(rows)
    color = alt.Color("method:N", title="method").scale(domain=list(style), range=[c for c, _ in style.values()])
    shape = alt.Shape("method:N", title="method").scale(domain=list(style), range=[s for _, s in style.values()])
    x = alt.X("cost:Q", title=COSTS[cost]).scale(zero=False, padding=14).axis(format=FORMATS[cost])
    y = (
        alt.Y("quality:Q", title=QUALITIES[quality])
        .scale(type="linear" if quality in LINEAR else "log", nice=False, padding=14)
        .axis(**({"format": "~g"} if quality in LINEAR else {"values": TICKS, "format": "~g"}))
    )
    picked = alt.selection_point(name="picked", fields=["method"], bind="legend")
    seen = alt.when(picked)
    base = _on_scale(alt.Chart(alt.Data(name="points"))).encode(x=x, y=y)
    ours = base.transform_filter("datum.method != 'dense'").encode(color=color)
    line = ours.transform_filter("!datum.grouped").mark_line(strokeWidth=2, clip=True)
    line = line.encode(opacity=seen.then(alt.value(0.7)).otherwise(alt.value(0.06)), order="cost:Q")
    line = line.add_params(picked)  # the first layer makes the legend, so only there a click on it is heard
    bars = ours.mark_rule(strokeWidth=1.5, clip=True).transform_calculate(floor="max(datum.low, datum.quality / 20)")
    bars = bars.encode(y="floor:Q", y2="high:Q", opacity=seen.then(alt.value(0.8)).otherwise(alt.value(0.05)))
    marks = ours.encode(
        shape=shape,
        opacity=seen.then(alt.value(1)).otherwise(alt.value(0.08)),
        tooltip=[alt.Tooltip(f"{c.field} as read:N", title=c.title) for c in columns_of(rows)],
    )
    hollow = marks.transform_filter("datum.grouped").mark_point(size=75, strokeWidth=2, clip=True)
    filled = marks.transform_filter("!datum.grouped").mark_point(size=85, filled=True, clip=True)
    filled = filled.add_params(alt.selection_interval(name="zoom", bind="scales"))
    return (
        alt.layer(line, bars, _ring(base), *_dense(base, y), hollow, filled, _beyond(base))
        .properties(width=760, height=480, datasets={"points": records(rows, cost, quality)})
        .properties(title=alt.TitleParams(finding(rows), subtitle=list(about.values())[:2], anchor="start"))
        .configure(**CONFIG)
    )


def _on_scale(chart: "altair.Chart") -> "altair.Chart":
    """Controls may be worse by any factor: they are drawn at most at twice the worst of the others, which stay legible."""
    import altair as alt

    worst = alt.JoinAggregateFieldDef(op="max", field="judged", **{"as": "worst"})
    top = "(datum.worst > 0 ? 2 * datum.worst : datum.quality)"
    return (
        chart.transform_calculate(judged="datum.control ? null : datum.quality", real="datum.quality")
        .transform_joinaggregate(joinaggregate=[worst])
        .transform_calculate(quality=f"min(datum.real, {top})", high=f"min(datum.high, {top})")
        .transform_calculate(low="min(datum.low, datum.quality)")
    )


def _beyond(base: "altair.Chart") -> "altair.Chart":
    """The value of a point that lies beyond the scale, under its mark at the edge."""
    import altair as alt

    far = base.transform_filter("datum.real > datum.quality && !datum.grouped")
    words = far.transform_calculate(words="'↑ ' + format(datum.real, '.2~s')").encode(text="words:N")
    return words.mark_text(baseline="top", dy=9, fontSize=12).encode(color=alt.value(GREY))


def _ring(base: "altair.Chart") -> "altair.Chart":
    """A ring round each point that no other beats: nothing cheaper is as good."""
    import altair as alt

    order = [alt.SortField("cost"), alt.SortField("quality")]
    best = [alt.WindowFieldDef(op="min", field="quality", **{"as": "best"})]
    front = base.transform_window(window=best, sort=order, frame=[None, 0], ignorePeers=True)
    first = [alt.WindowFieldDef(op="lag", field="best", **{"as": "before"})]
    front = front.transform_window(window=first, sort=order).transform_filter(
        "datum.before == null || datum.quality < datum.before"
    )
    return front.mark_point(size=260, strokeWidth=1.6, shape="circle", clip=True).encode(color=alt.value("#D4A017"))


def _dense(base: "altair.Chart", y: "altair.Y") -> "list[altair.Chart]":
    """What the model is untouched: a dashed line, its point, its value."""
    import altair as alt

    untouched = "datum.method == 'dense' && datum.quality >= 0"
    dense = base.transform_filter(untouched)
    rule = alt.Chart(base.data).encode(y=y).transform_filter(untouched)
    rule = rule.mark_rule(strokeDash=[6, 4], strokeWidth=1.5)
    point = dense.mark_point(size=90, shape="diamond", filled=True, opacity=1).encode(tooltip="method:N")
    words = dense.transform_calculate(words="'dense ' + format(datum.quality, '.3~g')")
    text = words.mark_text(align="left", baseline="bottom", dx=4, dy=-4, fontSize=12).encode(
        x=alt.value(0), text="words:N"
    )
    return [layer.encode(color=alt.value("black")) for layer in (rule, point, text)]


CONFIG = {
    "font": "Inter, 'Segoe UI', 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif",
    "title": {"fontSize": 18, "fontWeight": 600, "subtitleFontSize": 12, "subtitleColor": "#5b6168", "offset": 16},
    "axis": {
        "labelFontSize": 12,
        "titleFontSize": 13,
        "titleFontWeight": 500,
        "titlePadding": 10,
        "gridOpacity": 0.5,
        "tickCount": 6,
    },
    "legend": {
        "labelFontSize": 12,
        "titleFontSize": 13,
        "symbolSize": 90,
        "labelLimit": 260,
        "rowPadding": 5,
        "symbolOpacity": 1,
    },
    "view": {"stroke": None},
}


def picture(chart: "altair.LayerChart", path: str | Path) -> Path:
    """Write the chart as `.svg` or `.png`, by the file's ending; drawn here, without a browser."""
    import vl_convert

    path = Path(path)
    spec = chart.to_dict()
    if path.suffix == ".svg":
        path.write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")
    elif path.suffix == ".png":
        path.write_bytes(vl_convert.vegalite_to_png({**spec, "background": "white"}, scale=2))
    else:
        raise ValueError(f"a picture ends in .svg or .png, not {path.name!r}")
    return path
