"""What a study found: its table and its picture."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .figure import COLORS, CONFIG, GREY, picture
from .table import Column, Row, number

if TYPE_CHECKING:
    import altair

__all__ = ["drawn", "picture", "study_columns"]


def study_columns(rows: Sequence[Row], titles: Mapping[str, str]) -> list[Column]:
    """The columns of a study's table: words as they are, numbers to three digits, counts whole."""

    def write(value: Any) -> str:
        return str(value) if isinstance(value, (str, bool, int)) else number(value)

    words = {field for field in titles if any(isinstance(row.get(field), str) for row in rows)}
    return [Column(field, title, str if field in words else write) for field, title in titles.items()]


def drawn(
    rows: Sequence[Row], titles: Mapping[str, str], x: str, y: str, by: str, says: str, about: Mapping[str, str]
) -> "altair.LayerChart":
    """`y` over `x`, one colour a value of `by`, with the intervals `y_low` to `y_high` where rows have them.

    Numbers on `x` make lines, words make points side by side. Random, the control, is grey. Where y spans more than a
    factor of thirty the scale is symmetric-logarithmic, so that small differences and controls fit one picture.
    """
    import altair as alt

    words = isinstance(rows[0][x], str)
    names = list(dict.fromkeys(str(row[by]) for row in rows))
    ours = [name for name in names if not name.startswith("random")]
    colors = [COLORS[ours.index(n) % len(COLORS)] if n in ours else GREY for n in names]
    values = sorted(abs(row[y]) for row in rows if row[y])
    wide = len(values) > 1 and values[-1] > 30 * values[0]
    scale = alt.Scale(type="symlog", constant=max(values[len(values) // 4], 1e-3)) if wide else alt.Scale()
    across = alt.X(f"{x}:{'N' if words else 'Q'}", title=titles[x], sort=None)
    base = alt.Chart(alt.Data(values=[dict(row) for row in rows])).encode(
        x=across.axis(labelAngle=0) if words else across,
        y=alt.Y(f"{y}:Q", title=titles[y], scale=scale),
        color=alt.Color(f"{by}:N", title=titles[by], legend=None if by == x else alt.Legend()).scale(
            domain=names, range=colors
        ),
        tooltip=[alt.Tooltip(f"{field}:N", title=title) for field, title in titles.items()],
    )
    side = {"xOffset": alt.XOffset(f"{by}:N")} if words and by != x else {}
    layers = [base.mark_point(size=80, filled=True, opacity=1).encode(**side)]
    if not words:
        layers.insert(0, base.mark_line(strokeWidth=2, opacity=0.7))
    if f"{y}_low" in rows[0]:
        layers.append(base.mark_rule(strokeWidth=1.5).encode(y=f"{y}_low:Q", y2=f"{y}_high:Q", **side))
    if rows[0].get(y) is not None:
        layers.append(alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(strokeDash=[6, 4]).encode(y="zero:Q"))
    title = alt.TitleParams(says, subtitle=list(about.values())[:2], anchor="start")
    return alt.layer(*layers).properties(width=760, height=420, title=title).configure(**CONFIG)
