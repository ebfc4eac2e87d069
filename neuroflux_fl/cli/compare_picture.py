"""Pictures of a comparison: speed or accuracy against the budget, accuracy against time; a line for each method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflux_fl.cli.compare_view import is_relative
from neuroflux_fl.errors import DependencyError, StorageError, UsageError
from neuroflux_fl.output_folder import prepare_folder
from neuroflux_fl.sizes import MIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLES = {
    "neuroflux": ("#0072b2", "o"),
    "backprop": ("#1c2430", "s"),
    "backprop-checkpoints": ("#e69f00", "^"),
    "backprop-micro": ("#009e73", "v"),
    "backprop-both": ("#d55e00", "D"),
    "classic": ("#cc79a7", "X"),
}
"""Told apart by people who see colours differently (Okabe and Ito's set); the marks are for grey print."""
_FORMATS = (".svg", ".png")
_PANEL_WIDTH, _PANEL_HEIGHT, _LEGEND_HEIGHT = 420.0, 320.0, 70.0
"""In pixels."""
_POINTS_PER_INCH = 72.0


def check_picture(path: Path) -> None:
    """Find out before any work is done whether the picture can be drawn.

    Raises:
        UsageError: the name does not end in .svg or .png, or is a folder's.
        DependencyError: matplotlib is not installed.
        StorageError: its folder cannot be written.
    """
    if path.suffix.lower() not in _FORMATS:
        raise UsageError(f"Picture {str(path)!r} has an unknown format: end its name in {' or '.join(_FORMATS)}.")
    if find_spec("matplotlib") is None:
        raise DependencyError(
            'A picture needs the package matplotlib, which is not installed: pip install "neuroflux-fl[report]".'
        )
    prepare_folder(path.parent, "--picture")
    if path.is_dir():
        raise UsageError(f"Picture {str(path)!r} is a folder: choose another name.")


def write_picture(path: Path, compared: Sequence[dict[str, Any]]) -> None:
    """A row of panels for each model, under one legend.

    Raises:
        StorageError: the file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from server.report.canvas import drawing_style, style_axes
    from server.report.themes import LIGHT

    rows = [_panels(comparison) for comparison in compared]
    columns = max(map(len, rows))
    width, height = columns * _PANEL_WIDTH, len(rows) * _PANEL_HEIGHT + _LEGEND_HEIGHT
    shown = {result["arm"] for comparison in compared for result in comparison["results"]}
    temporary = path.with_name(path.name + ".tmp")
    with drawing_style():
        figure = Figure(figsize=(width / _POINTS_PER_INCH, height / _POINTS_PER_INCH), dpi=_POINTS_PER_INCH)
        figure.patch.set_facecolor(LIGHT.surface)
        for axes_row, panels in zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True):
            for axes in axes_row[len(panels) :]:
                axes.set_axis_off()
            for axes, draw in zip(axes_row, panels, strict=False):
                style_axes(axes, LIGHT)
                draw(axes)
        handles = [_line(Line2D, arm, [], []) for arm in _STYLES if arm in shown]
        figure.legend(
            handles=handles, loc="upper center", ncols=3 if columns > 1 else 2, frameon=False, labelcolor=LIGHT.ink
        )
        figure.tight_layout(rect=(0, 0, 1, 1 - _LEGEND_HEIGHT / height))
        try:
            figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=2 * _POINTS_PER_INCH)
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StorageError(f"Cannot write {path}: {error.strerror}. Choose another file.") from error


def _panels(comparison: dict[str, Any]) -> list[Callable[[Axes], None]]:
    """What there is to draw of a model."""
    rows = comparison["results"]
    title = f"{comparison['model']}, {comparison['precision']}"
    if "smallest_budget_bytes" in comparison:
        return [partial(_draw_floors, floors=comparison["smallest_budget_bytes"], title=title)]
    if any(row["passes"] for row in rows):
        return [partial(_draw_against_budget, rows=rows, title=title, label="samples a second", value=_speed)]
    curves = [
        partial(
            _draw_curves,
            rows=[row for row in rows if _budget_name(row) == name],
            title=f"{title}, {name}".replace("\n", " "),
        )
        for name in dict.fromkeys(map(_budget_name, rows))
    ]
    return [*curves, partial(_draw_against_budget, rows=rows, title=title, label="test accuracy, %", value=_accuracy)]


def _draw_against_budget(
    axes: Axes,
    *,
    rows: Sequence[dict[str, Any]],
    title: str,
    label: str,
    value: Callable[[dict[str, Any]], float | None],
) -> None:
    """Budgets in the order asked for, evenly spaced: most of a scale in bytes would be empty."""
    names = list(dict.fromkeys(map(_budget_name, rows)))
    for arm in dict.fromkeys(row["arm"] for row in rows):
        points = [
            (names.index(_budget_name(row)), found)
            for row in rows
            if row["arm"] == arm and (found := value(row)) is not None
        ]
        _line(axes.plot, arm, [at for at, _ in points], [found for _, found in points])
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.3, len(names) - 0.7)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(label)
    axes.set_title(title, loc="left", fontsize=12)


def _draw_curves(axes: Axes, *, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Test accuracy of what one would have if training had ended then."""
    for row in rows:
        if row["trained"]:
            curve = row["trained"]["curve"]
            seconds = [point["seconds"] for point in curve]
            _line(axes.plot, row["arm"], seconds, [100 * point["test_accuracy"] for point in curve])
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds, tuning and evaluation included")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(title, loc="left", fontsize=12)


def _draw_floors(axes: Axes, *, floors: dict[str, int], title: str) -> None:
    for arm, size in floors.items():
        axes.barh(arm, size / MIB, color=_STYLES[arm][0], height=0.6)
    axes.invert_yaxis()
    axes.set_xlabel("smallest budget that trains the whole network, MiB")
    axes.set_title(title, loc="left", fontsize=12)


def _line(make: Callable[..., Any], arm: str, across: Sequence[float], up: Sequence[float]) -> Any:
    colour, mark = _STYLES[arm]
    return make(across, up, color=colour, marker=mark, markersize=6, linewidth=1.8, label=arm)


def _budget_name(row: dict[str, Any]) -> str:
    if row["budget_bytes"] is None:
        return "no limit"
    size = f"{row['budget_bytes'] / MIB:.0f} MiB"
    return f"{size}\n{row['budget']}" if is_relative(row["budget"]) else size


def _speed(row: dict[str, Any]) -> float | None:
    rate: float | None = row["samples_per_second"]
    return rate


def _accuracy(row: dict[str, Any]) -> float | None:
    return 100 * row["trained"]["curve"][-1]["test_accuracy"] if row["trained"] else None
