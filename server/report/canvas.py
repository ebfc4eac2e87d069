"""A figure to draw on, and the same as SVG that many of can stand in one page: own ids, text as text, no links out."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from server.report.themes import Theme

_POINTS_PER_INCH = 72.0
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif'
# The page's font is the reader's own: text is measured in DejaVu Sans, which is wider than most.
_SETTINGS: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 12.0,
    "svg.fonttype": "none",
    "axes.unicode_minus": True,
    "hatch.linewidth": 1.0,
    # A name with dollars in it is a name, not a formula.
    "text.parse_math": False,
}
_HEAD = {"Date": None, "Creator": None, "Type": None, "Format": None}
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FONT_FAMILY = re.compile(r"'DejaVu Sans'(?:, [^;]*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A figure in one theme, and what has to be said of this one beside what is said of all its kind."""

    figure: Figure
    note: str = ""


@contextmanager
def drawing_style() -> Iterator[None]:
    """Fonts of all figures that are made and written in its block."""
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        # Text is kept as text: the reader's fonts have what DejaVu has not.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


def new_figure(theme: Theme, width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of the given size in pixels with one empty pair of axes."""
    figure = Figure(figsize=(width / _POINTS_PER_INCH, height / _POINTS_PER_INCH), dpi=_POINTS_PER_INCH)
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    style_axes(axes, theme)
    return figure, axes


def style_axes(axes: Axes, theme: Theme) -> None:
    """Thin lines in the theme's colours, no box."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(theme.grid)
    axes.tick_params(colors=theme.muted, length=0, labelsize=11)
    axes.xaxis.label.set_color(theme.muted)
    axes.yaxis.label.set_color(theme.muted)
    axes.grid(visible=True, color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)


def to_svg(figure: Figure, key: str, label: str) -> str:
    """The figure as an ``<svg>`` element for a page that has others.

    Args:
        figure: made by ``new_figure`` in the same block of ``drawing_style``.
        key: put before every id; letters, digits and hyphens.
        label: what a screen reader says.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": key}):
        figure.savefig(buffer, format="svg", metadata=_HEAD)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            # Its style sheet would hold for the whole page.
            if child.tag.endswith(("metadata", "style")):
                parent.remove(child)
    for element in list(root.iter()):
        _make_local(element, key)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": label, "style": "stroke-linejoin: round; stroke-linecap: butt"}
    return ElementTree.tostring(root, encoding="unicode")


def _make_local(element: ElementTree.Element, key: str) -> None:
    if "id" in element.attrib:
        element.attrib["id"] = f"{key}-{element.attrib['id']}"
    for name, value in element.attrib.items():
        if name == f"{{{_XLINK}}}href" and value.startswith("#"):
            element.attrib[name] = f"#{key}-{value[1:]}"
        elif "url(#" in value:
            element.attrib[name] = _REFERENCE.sub(rf"url(#{key}-\1)", value)
        elif name == "style" and "DejaVu" in value:
            element.attrib[name] = _FONT_FAMILY.sub(lambda _: _FONT.replace('"', "'"), value)
