"""A figure as inline SVG for the page and as SVG and PNG files. Narrow, so that letters stay readable on a phone."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, Literal

from clinstack.report.collect import ReportData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.0
INK, FAINT = "#1a1a1a", "#8a8a8a"
# Okabe and Ito's palette, which colour-blind readers can tell apart; line styles say the same again.
_LINES: dict[str, tuple[str, str]] = {
    "head": ("#5c5c5c", ":"),
    "full": ("#5c5c5c", ":"),
    "lora": ("#b87400", "--"),
    "clinical-frozen": ("#56b4e9", ":"),
    "clinical-frozen+lora": ("#0072b2", "-"),
    "clinical-trainable": ("#cc79a7", ":"),
    "clinical-trainable+lora": ("#d55e00", "-"),
}
LINES = tuple(
    (colour, style)
    for style in ("-", "--", "-.", ":")
    for colour in ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b87400", "#56b4e9", "#5c5c5c")
)
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "text.parse_math": False,  # a dollar sign in a label is a dollar sign
    "svg.fonttype": "path",  # the same letters on every machine
    "svg.hashsalt": "clinstack",  # the same bytes for the same figures
}
_DOTS_PER_INCH = 200


@dataclass(frozen=True)
class Drawing:
    """A figure.

    Parameters
    ----------
    key : str
        Name of its files.
    svg : str
        An ``<svg>`` element for the page, with a title for screen readers.
    caption : str
    file : str
        The same as an SVG file; it says itself when patients or model are not real.
    png : bytes
    """

    key: str
    svg: str
    caption: str
    file: str = field(repr=False)
    png: bytes = field(repr=False)


@contextmanager
def canvas(height: float, *, panels: Sequence[float] = (1,), share_x: bool = False) -> Iterator[tuple[Figure, Any]]:
    """Open a figure of ``height`` inches with panels below each other, of these relative heights.

    Yields the figure and its axes: one, or an array of several.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, figure.subplots(len(panels), height_ratios=list(panels), sharex=share_x)


def finish(figure: Figure, key: str, description: str, caption: str, caveat: str) -> Drawing:
    """Return a figure in all its forms; call it while its `canvas` is open.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    key : str
        Also stands before every id, because several figures share one page.
    description : str
        For those who cannot see it.
    caption : str
    caveat : str
        Written above the figure; empty when patients and model are real.
    """
    key = re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-")
    if caveat:
        strip = 0.15 / figure.get_figheight()
        figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - strip))
        figure.text(0.99, 1 - 0.2 * strip, caveat, ha="right", va="top", fontsize=6.5, color="#6b4500")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    # The layout is found once, not once for each form; nor does `savefig` draw each form twice.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    figure.set_dpi(_DOTS_PER_INCH)
    pixels = io.BytesIO()
    FigureCanvasAgg(figure).print_png(pixels, metadata={"Software": None})  # type: ignore[no-untyped-call]
    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        patch.set_alpha(0.0)
    text = io.StringIO()
    FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})  # type: ignore[no-untyped-call]
    whole = re.sub(r" *<metadata>.*?</metadata>\n?", "", text.getvalue(), flags=re.DOTALL)
    return Drawing(key, _inline(whole, key, description), caption, whole, pixels.getvalue())


def _inline(text: str, key: str, description: str) -> str:
    """Return an SVG file as an element for an HTML page: no prolog, no fixed size, a title."""
    body = text[text.index("<svg") :]
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{key}-", body)
    box = re.search(r'viewBox="[^"]*"', body)
    assert box is not None  # matplotlib always writes one
    name = escape(description)
    opening = f'<svg role="img" aria-label="{name}" {box[0]}><title>{name}</title>'
    return opening + body[body.index(">") + 1 :].strip()


def lines_of(data: ReportData, keys: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return colour and line style of each row: by stack on one base, by place on several."""
    if len(data.bases) > 1:
        return dict(zip(keys, LINES * (len(keys) // len(LINES) + 1), strict=False))
    others = iter(LINES * (len(keys) // len(LINES) + 1))
    return {key: _LINES.get(key) or next(others) for key in keys}


def legend(axes: Axes, title: str, place: Literal["lower right", "upper right", "upper left"] = "lower right") -> None:
    """Put a small legend into a panel."""
    axes.legend(
        loc=place,
        fontsize=7.5,
        frameon=True,
        framealpha=0.9,
        edgecolor="none",
        title=title,
        title_fontsize=7.5,
        alignment="left",
    )
