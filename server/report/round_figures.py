"""How the rounds went: a timeline of every answer, how long answers took, and what was sent."""

from __future__ import annotations

from collections import defaultdict
from statistics import median

from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from server.answer_log import Answer
from server.report.canvas import Drawing, new_figure
from server.report.device_figures import activity_handles, idle_seconds, simulation_note
from server.report.facts import RunFacts
from server.report.names import name_of_node, natural_order
from server.report.row_axes import WIDTH, add_boxes, label_row, legend_above, place_rows
from server.report.rows import MOST_ROWS, pick_rows, sample_note
from server.report.scales import byte_scale, time_scale
from server.report.stragglers import STRAGGLER, is_straggler, seconds_by_round, typical_seconds
from server.report.themes import Theme

_MOST_ANSWERS = 320
"""Bars of a timeline; with more, only the latest rounds are drawn."""


def timeline(run: RunFacts, theme: Theme) -> Drawing | None:
    """A row for each device, a bar for each answer."""
    if not run.answers:
        return None
    slowest: defaultdict[int, float] = defaultdict(float)
    for answer in run.answers:
        missed = float("inf") if answer.seconds is None else answer.seconds
        slowest[answer.node_id] = max(slowest[answer.node_id], missed)
    names = {node_id: name_of_node(node_id) for node_id in slowest} | run.device_names()
    nodes = sorted(slowest, key=lambda node_id: natural_order(names[node_id]))
    picked = pick_rows(nodes, lambda node_id: slowest[node_id], limit=MOST_ROWS)
    first = _first_round(run, len(picked))
    shown = [answer for answer in run.answers if answer.round >= first and answer.node_id in set(picked)]
    ends = {record.round: record.elapsed_seconds for record in run.rounds}
    begin = ends.get(first - 1, 0.0)
    last = max(
        [run.seconds, *(answer.sent_at + (answer.seconds or 0.0) for answer in shown)]
        + [end for round, end in ends.items() if round >= first]
    )
    scale = time_scale(last)
    figure, axes = new_figure(theme, WIDTH, 118 + 24 * len(picked))
    row = {node_id: float(len(picked) - 1 - index) for index, node_id in enumerate(picked)}
    typical = typical_seconds(run.answers)
    came_late = {(answer.node_id, answer.sent_at) for answer in shown if answer.fate.startswith("late")}
    bars = [
        answer for answer in shown if answer.seconds is not None or (answer.node_id, answer.sent_at) not in came_late
    ]  # of an answer that came late, the other line has the whole bar
    _bars(axes, theme, [answer for answer in bars if answer.seconds is not None], row, scale.divisor)
    for answer in bars:
        _fate(axes, theme, answer, row[answer.node_id], ends.get(answer.round, last), scale.divisor, typical)
    for record in run.rounds:
        if record.round >= first:
            axes.axvline(record.elapsed_seconds / scale.divisor, color=theme.muted, linewidth=1.0, zorder=1)
    _round_numbers(axes, theme, run, first, begin, last, scale.divisor)
    for node_id in picked:
        label_row(axes, theme, row[node_id] + 0.5, names[node_id])
    axes.set_ylim(0, len(picked))
    axes.set_yticks([])
    axes.set_xlim(begin / scale.divisor, (last + 0.01 * (last - begin)) / scale.divisor)
    axes.set_xlabel(f"{scale.unit} since the run began")
    _timeline_legend(axes, theme)
    place_rows(figure, axes, [names[node_id] for node_id in picked], above=74.0)
    notes = [sample_note(len(picked), len(nodes), "time until the answer"), simulation_note(run)]
    if first > 1:
        notes.append(f"Rounds {first} to {max(answer.round for answer in shown)}; earlier ones are in the table.")
    return Drawing(figure=figure, note=" ".join(note for note in notes if note))


def answer_times(run: RunFacts, theme: Theme) -> Drawing | None:
    """For each round the fastest, the median and the slowest answer, and the round's own length."""
    taken = seconds_by_round(run.answers)
    if not taken:
        return None
    lengths = {record.round: record.seconds for record in run.rounds}
    longest = max(max(seconds) for seconds in taken.values())
    scale = time_scale(max([longest, *lengths.values()]))
    figure, axes = new_figure(theme, 520, 330)
    rounds = sorted(taken)
    width = 6.0 if len(rounds) <= 30 else 2.0
    axes.vlines(
        rounds, [min(taken[round]) / scale.divisor for round in rounds],
        [max(taken[round]) / scale.divisor for round in rounds], color=theme.bar, linewidth=width, alpha=0.45,
        label="fastest to slowest answer",
    )  # fmt: skip
    axes.plot(
        rounds, [median(taken[round]) / scale.divisor for round in rounds], linestyle="", marker="o",
        markersize=6 if len(rounds) <= 30 else 3, color=theme.bar, label="median",
    )  # fmt: skip
    axes.plot(
        list(lengths), [length / scale.divisor for length in lengths.values()], linestyle="", marker="_",
        markersize=12, markeredgewidth=2.0, color=theme.ink, label="whole round",
    )  # fmt: skip
    axes.set_ylim(0, 1.05 * max([longest, *lengths.values()]) / scale.divisor)
    axes.set_ylabel(scale.unit)
    _round_axis(axes, rounds)
    _legend_below(axes, theme)
    return Drawing(figure=figure)


def traffic(run: RunFacts, theme: Theme) -> Drawing | None:
    """Bytes of each round, to the devices and back."""
    if not any(record.bytes_up or record.bytes_down for record in run.rounds):
        return None
    largest = max(record.bytes_up + record.bytes_down for record in run.rounds)
    scale = byte_scale(largest)
    rounds = [record.round for record in run.rounds]
    down = [record.bytes_down / scale.divisor for record in run.rounds]
    up = [record.bytes_up / scale.divisor for record in run.rounds]
    figure, axes = new_figure(theme, 520, 330)
    for bottoms, heights, colour, label in (
        ([0.0] * len(rounds), down, theme.bar, "server to devices"), (down, up, theme.second, "devices to server"),
    ):  # fmt: skip
        boxes = [
            (round - 0.4, bottom, 0.8, height) for round, bottom, height in zip(rounds, bottoms, heights, strict=True)
        ]
        add_boxes(axes, boxes, facecolor=colour, linewidth=0, zorder=3, label=label)
    axes.set_ylim(0, 1.05 * largest / scale.divisor)
    axes.set_ylabel(scale.unit)
    _round_axis(axes, rounds)
    _legend_below(axes, theme)
    return Drawing(figure=figure)


def _first_round(run: RunFacts, rows: int) -> int:
    rounds = sorted({answer.round for answer in run.answers})
    kept = max(1, _MOST_ANSWERS // rows)
    return rounds[-kept] if len(rounds) > kept else rounds[0]


def _bars(axes: Axes, theme: Theme, answers: list[Answer], row: dict[int, float], divisor: float) -> None:
    """The answers' time by activity."""
    lefts = [answer.sent_at for answer in answers]
    colours = dict(theme.activities)
    for activity in ("profile", "train", "cache", "evaluate", "waiting"):
        boxes = []
        for index, answer in enumerate(answers):
            width = idle_seconds(answer) if activity == "waiting" else float(getattr(answer, activity))
            if width > 0:
                boxes.append((lefts[index] / divisor, row[answer.node_id] + 0.18, width / divisor, 0.64))
                lefts[index] += width
        add_boxes(axes, boxes, facecolor=colours[activity], linewidth=0, zorder=3)


def _fate(
    axes: Axes, theme: Theme, answer: Answer, base: float, round_end: float, divisor: float, typical: dict[int, float]
) -> None:
    """Marks what is not as it should be."""
    if answer.seconds is None:
        end = max(round_end, answer.sent_at)
        _outline(axes, theme, answer.sent_at / divisor, (end - answer.sent_at) / divisor, base, dashed=True)
        _mark(axes, theme, end / divisor, base, "x")
        return
    end = (answer.sent_at + answer.seconds) / divisor
    if answer.fate == "failed":
        _mark(axes, theme, end, base, "x")
    elif answer.fate != "answered":
        _mark(axes, theme, end, base, "<", hollow=answer.fate == "late_dropped")
    elif is_straggler(answer, typical):
        _outline(axes, theme, answer.sent_at / divisor, answer.seconds / divisor, base, dashed=False)


def _outline(axes: Axes, theme: Theme, left: float, width: float, base: float, *, dashed: bool) -> None:
    axes.add_artist(
        Rectangle(
            (left, base + 0.14), width, 0.72, facecolor="none", edgecolor=theme.alarm, linewidth=1.6,
            linestyle=(0, (3, 2)) if dashed else "-", zorder=4,
        )
    )  # fmt: skip


def _mark(axes: Axes, theme: Theme, at: float, base: float, marker: str, *, hollow: bool = False) -> None:
    axes.plot(
        [at], [base + 0.5], linestyle="", marker=marker, markersize=8, markeredgewidth=2.2, clip_on=False,
        color=theme.alarm, markerfacecolor=theme.surface if hollow else theme.alarm, zorder=6,
    )  # fmt: skip


def _round_numbers(
    axes: Axes, theme: Theme, run: RunFacts, first: int, begin: float, last: float, divisor: float
) -> None:
    """Above the bars, as many numbers of rounds as have room."""
    before, free = begin, begin
    for record in run.rounds:
        if record.round < first:
            continue
        middle, needed = (before + record.elapsed_seconds) / 2, 0.04 * (last - begin)
        if middle - needed / 2 >= free:
            axes.text(
                middle / divisor, 1.0, str(record.round), transform=axes.get_xaxis_transform(), ha="center",
                va="bottom", fontsize=10.5, color=theme.muted,
            )  # fmt: skip
            free = middle + needed / 2
        before = record.elapsed_seconds
    axes.annotate(
        "round", (0, 1), xycoords="axes fraction", xytext=(-9, 0), textcoords="offset points", ha="right", va="bottom",
        fontsize=10.5, color=theme.muted,
    )  # fmt: skip


def _timeline_legend(axes: Axes, theme: Theme) -> None:
    handles: list[object] = list(activity_handles(theme))
    handles += [
        Patch(facecolor="none", edgecolor=theme.alarm, linewidth=1.6, label=f"straggler (over {STRAGGLER:g}x median)"),
        axes.plot([], [], linestyle="", marker="x", markeredgewidth=2.2, color=theme.alarm, label="failed or missing")[
            0
        ],
        axes.plot([], [], linestyle="", marker="<", color=theme.alarm, label="late, used (hollow: dropped)")[0],
    ]
    legend_above(axes, theme, handles, columns=4, lift=1.7)


def _round_axis(axes: Axes, rounds: list[int]) -> None:
    axes.set_xlim(min(rounds) - 0.6, max(rounds) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True, min_n_ticks=1))
    axes.set_xlabel("round")
    axes.grid(visible=False, axis="x")


def _legend_below(axes: Axes, theme: Theme) -> None:
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.46, -0.17), ncols=3, frameon=False, fontsize=11,
        labelcolor=theme.ink, columnspacing=1.2, handletextpad=0.5,
    )  # fmt: skip
    axes.figure.subplots_adjust(left=0.13, right=0.98, top=0.96, bottom=0.27)
