"""Figures with a row for each device: names left of the axes, a legend above, rows of the same height in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from server.report.scales import shorten
from server.report.themes import Theme

WIDTH = 1000.0
"""Of such a figure, in pixels."""
_LONGEST = 24
_CHARACTER = 7.4
"""Width of one, in pixels, generously."""
_LEFT_OF_AXES = -9.0
_BELOW = 44.0


def label_row(axes: Axes, theme: Theme, height: float, name: str, note: str = "") -> None:
    """A device's name left of the axes at a height in rows, and a note under it."""
    align = "bottom" if note else "center"
    for text, size, colour, drop, vertical in (
        (shorten(name, _LONGEST), 11.0, theme.ink, 0.0, align),
        (note, 10.0, theme.muted, -2.0, "top"),
    ):
        if text:
            axes.annotate(
                text, (0, height), xycoords=axes.get_yaxis_transform(), xytext=(_LEFT_OF_AXES, drop),
                textcoords="offset points", ha="right", va=vertical, fontsize=size, color=colour,
                annotation_clip=False,
            )  # fmt: skip


def add_boxes(axes: Axes, boxes: Sequence[tuple[float, float, float, float]], **style: Any) -> None:
    """Rectangles, each given as left, bottom, width and height, in one style and as one shape: a small file."""
    if not boxes:
        return
    corners = [
        ((left, bottom), (left, bottom + height), (left + width, bottom + height), (left + width, bottom), (0.0, 0.0))
        for left, bottom, width, height in boxes
    ]
    codes = (Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY)
    shape = Path(np.array(corners).reshape(-1, 2), np.tile(np.array(codes, dtype=Path.code_type), len(boxes)))
    axes.add_artist(PathPatch(shape, **style))


def place_rows(figure: Figure, axes: Axes, names: Sequence[str], *, above: float = 52.0) -> None:
    """Put the axes where the names have room on the left and the legend has ``above`` pixels."""
    whole = figure.get_figheight() * 72.0
    longest = max((len(shorten(name, _LONGEST)) for name in names), default=0)
    left = 16.0 + _CHARACTER * longest
    axes.set_position((left / WIDTH, _BELOW / whole, 1 - (left + 12.0) / WIDTH, 1 - (_BELOW + above) / whole))


def legend_above(axes: Axes, theme: Theme, handles: Sequence[Any], *, columns: int = 5, lift: float = 0.6) -> None:
    """A legend above the axes, from their left edge; ``lift`` is the gap in letters."""
    axes.legend(
        handles=list(handles), loc="lower left", bbox_to_anchor=(-0.012, 1.0), ncols=columns, frameon=False,
        fontsize=11, labelcolor=theme.ink, handlelength=1.5, handletextpad=0.5, columnspacing=1.5, borderaxespad=lift,
    )  # fmt: skip
