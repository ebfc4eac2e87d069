"""Is it learning: accuracy of the exits against what it cost, and against the size of the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator, PercentFormatter

from server.report.canvas import Drawing, new_figure
from server.report.facts import ExitFacts, RunFacts
from server.report.scales import byte_scale, time_scale, write_count, write_share
from server.report.themes import Theme

_WIDTH, _HEIGHT = 520.0, 310.0
_LABEL_WIDTH, _LABEL_HEIGHT = 14.0, 12.0
"""Room of a unit's number, in points."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Accuracy of one exit over the rounds: ``ends[i]`` is the round after which ``accuracies[i]`` was measured."""

    unit: int
    ends: tuple[int, ...]
    accuracies: tuple[float, ...]


def curves(run: RunFacts) -> tuple[Curve, ...]:
    """By exit, shallowest first; test accuracy where the server has test images, else validation accuracy.

    A round's test accuracy is of its end. Its validation accuracy is of the exits that it began with, so of the end of
    the round before: 0 is the untrained network.
    """
    points: dict[int, dict[int, float]] = {}
    for record in run.rounds:
        measured = record.test if run.tested else record.exits
        for unit, accuracy in measured.items():
            points.setdefault(unit, {})[record.round if run.tested else record.round - 1] = accuracy
    if run.rounds and run.state == "finished":
        for exit in run.exits:
            if exit.accuracy is not None and (exit.test is not None) == run.tested:
                points.setdefault(exit.unit, {})[run.rounds[-1].round] = exit.accuracy
    return tuple(
        Curve(unit, tuple(sorted(by_round)), tuple(by_round[end] for end in sorted(by_round)))
        for unit, by_round in sorted(points.items())
    )


def accuracy_by_round(run: RunFacts, theme: Theme) -> Drawing | None:
    """Against the number of rounds."""
    return _accuracy(run, theme, [float(record.round) for record in run.rounds], "rounds completed", whole=True)


def accuracy_by_time(run: RunFacts, theme: Theme) -> Drawing | None:
    """Against wall time of the run."""
    ends = [record.elapsed_seconds for record in run.rounds]
    scale = time_scale(max(ends, default=0.0))
    return _accuracy(run, theme, [end / scale.divisor for end in ends], f"{scale.unit} since the run began")


def accuracy_by_bytes(run: RunFacts, theme: Theme) -> Drawing | None:
    """Against all bytes so far, both ways."""
    ends = list(accumulate(record.bytes_up + record.bytes_down for record in run.rounds))
    scale = byte_scale(max(ends, default=0))
    return _accuracy(run, theme, [end / scale.divisor for end in ends], f"{scale.unit} sent, both ways together")


def accuracy_by_device_seconds(run: RunFacts, theme: Theme) -> Drawing | None:
    """Against the work of all devices together."""
    ends = list(accumulate(record.device_seconds for record in run.rounds))
    scale = time_scale(max(ends, default=0.0))
    unit = scale.unit.removesuffix("s")
    return _accuracy(run, theme, [end / scale.divisor for end in ends], f"device-{unit}s of work, all devices together")


def exits_by_parameters(run: RunFacts, theme: Theme) -> Drawing | None:
    """Accuracy of every exit against its size."""
    shown = [(exit, exit.parameters) for exit in run.exits if exit.parameters and exit.accuracy is not None]
    if not shown:
        return None
    figure, axes = new_figure(theme, 520, 360)
    sizes = [float(size) for _, size in shown]
    values: list[float] = []
    for split, face in (("validation", theme.surface), ("test", theme.bar)):
        found = [(size, getattr(exit, split)) for exit, size in shown if getattr(exit, split) is not None]
        if found:
            values += [accuracy for _, accuracy in found]
            axes.plot(
                [size for size, _ in found], [accuracy for _, accuracy in found], linestyle="", marker="o",
                markersize=9 if split == "test" else 8, markerfacecolor=face, markeredgecolor=theme.bar,
                markeredgewidth=1.6, label=f"{split} images", zorder=3,
            )  # fmt: skip
    if run.chosen is not None and run.chosen.parameters and run.chosen.accuracy is not None:
        axes.plot(
            [run.chosen.parameters], [run.chosen.accuracy], linestyle="", marker="o", markersize=19,
            markerfacecolor="none", markeredgecolor=theme.second, markeredgewidth=2.4,
            label=f"chosen: exit {run.chosen.unit}", zorder=4,
        )  # fmt: skip
    if run.full_parameters:
        axes.axvline(run.full_parameters, color=theme.muted, linewidth=1.2, linestyle=(0, (4, 3)), label="full depth")
        sizes.append(float(run.full_parameters))
    _size_axis(axes, sizes)
    _accuracy_axis(axes, values, "accuracy")
    _legend_below(axes, theme, columns=2)
    figure.subplots_adjust(left=0.125, right=0.975, top=0.97, bottom=0.265)
    _number_points(axes, theme, shown)
    return Drawing(figure=figure)


def _number_points(axes: Axes, theme: Theme, shown: Sequence[tuple[ExitFacts, float]]) -> None:
    """The unit above its point, or above the number before it where the two would overlap."""
    points_per_pixel = 72 / axes.figure.dpi
    placed: list[tuple[float, float]] = []
    for exit, size in sorted(shown, key=lambda item: item[1]):
        height = max(accuracy for accuracy in (exit.validation, exit.test) if accuracy is not None)
        across, up = axes.transData.transform((size, height)) * points_per_pixel
        offset = 13 if exit.chosen else 8
        while any(abs(across - x) < _LABEL_WIDTH and abs(up + offset - y) < _LABEL_HEIGHT for x, y in placed):
            offset += 4
        placed.append((across, up + offset))
        axes.annotate(
            str(exit.unit), (size, height), xytext=(0, offset), textcoords="offset points",
            ha="center", fontsize=11, color=theme.ink, fontweight="bold" if exit.chosen else "normal",
        )  # fmt: skip


def _accuracy(run: RunFacts, theme: Theme, ends: Sequence[float], label: str, *, whole: bool = False) -> Drawing | None:
    found = curves(run)
    if not found or not any(ends):
        return None
    figure, axes = new_figure(theme, _WIDTH, _HEIGHT)
    position = dict(zip((record.round for record in run.rounds), ends, strict=True)) | {0: 0.0}
    colour = _depth_colours(theme, max(curve.unit for curve in found))
    for curve in found:
        chosen = run.chosen is not None and curve.unit == run.chosen.unit
        axes.plot(
            [position[end] for end in curve.ends], curve.accuracies, color=colour(curve.unit),
            linewidth=3.0 if chosen else 1.6, marker="o", markersize=4.5 if chosen else 3.2,
            markevery=max(1, len(curve.ends) // 20),
            label=f"{curve.unit}: {write_share(curve.accuracies[-1])}" + (" ★" if chosen else ""),
        )  # fmt: skip
    for before, record in zip(run.rounds, run.rounds[1:], strict=False):
        if record.stage != before.stage:
            axes.axvline(position[before.round], color=theme.muted, linewidth=1.0, linestyle=(0, (2, 3)))
    axes.set_xlim(0, max(ends) * 1.02)
    axes.set_xlabel(label)
    if whole:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _accuracy_axis(
        axes, [value for curve in found for value in curve.accuracies], f"{_split(run)} accuracy", shorten=True
    )
    legend = axes.legend(
        title="exit: latest", loc="upper left", bbox_to_anchor=(1.0, 1.02), frameon=False, fontsize=10.5,
        title_fontsize=10.5, labelcolor=theme.ink, handlelength=1.1, handletextpad=0.5, borderaxespad=0.2,
        labelspacing=0.35 if len(found) <= 12 else 0.05,
    )  # fmt: skip
    legend.get_title().set_color(theme.muted)
    figure.subplots_adjust(left=0.125, right=0.785, top=0.965, bottom=0.155)
    return Drawing(figure=figure)


def _split(run: RunFacts) -> str:
    return "test" if run.tested else "validation"


def _accuracy_axis(axes: Axes, values: Sequence[float], label: str, *, shorten: bool = False) -> None:
    """From zero where that leaves the figure readable; else the label says where the axis begins."""
    low = 0.0
    if min(values) > 0.5:
        low = math.floor((min(values) - 0.02) * 10) / 10
    high = min(1.0, math.ceil((max(values) + 0.03) * 20) / 20)
    axes.set_ylim(low, max(high, low + 0.1) + (0.0 if shorten else 0.03 * (high - low)))
    axes.set_ylabel(label + (f" (axis from {100 * low:.0f} %)" if low else ""))
    # Steps of whole per cents: rounded labels on a step of 2.5 would tell the wrong place.
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if high - low > 0.1 else 1, symbol=" %"))


def _size_axis(axes: Axes, sizes: Sequence[float]) -> None:
    if max(sizes) > 8 * min(sizes):
        axes.set_xscale("log")
        axes.set_xlim(min(sizes) / 1.5, max(sizes) * 1.5)
        digits = (1, 2, 5) if max(sizes) < 150 * min(sizes) else (1,)
        ticks = [
            digit * 10.0**power for power in range(2, 11) for digit in digits
            if min(sizes) / 1.5 <= digit * 10.0**power <= max(sizes) * 1.5
        ]  # fmt: skip
        axes.set_xticks(ticks)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("parameters of the model, head included (logarithmic axis)")
    else:
        axes.set_xlim(0, max(sizes) * 1.08)
        axes.set_xlabel("parameters of the model, head included")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write_count(value)))


def _legend_below(axes: Axes, theme: Theme, columns: int) -> None:
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.46, -0.17), ncols=columns, frameon=False, fontsize=11,
        labelcolor=theme.ink, columnspacing=1.4, handletextpad=0.5,
    )  # fmt: skip


def _depth_colours(theme: Theme, deepest: int) -> Callable[[int], str]:
    scale = LinearSegmentedColormap.from_list("depth", list(theme.depth))
    return lambda unit: to_hex(scale(unit / max(1, deepest)))
