"""What every device does: memory against its budget, its plan on the network, and where its time goes."""

from __future__ import annotations

from collections import defaultdict

from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from neuroflux_fl.sizes import MIB, format_bytes
from server.answer_log import Answer
from server.device_totals import BlockTotals
from server.report.canvas import Drawing, new_figure
from server.report.facts import DeviceFacts, RunFacts
from server.report.row_axes import WIDTH, add_boxes, label_row, legend_above, place_rows
from server.report.rows import pick_rows, sample_note
from server.report.scales import three_digits, time_scale
from server.report.themes import BLOCK_COLOURS, BLOCK_TEXT, Theme

_MEMORY_ROWS = 24
_FULL = 0.78
"""Height of the budget's line in a row of height 1."""
_HIGHEST = 1.22
"""Share of the budget at which a bar is cut off."""

Row = tuple[DeviceFacts, int, tuple[BlockTotals, ...]]
"""A device, the number of this row of its, and blocks that do not overlap."""


def memory(run: RunFacts, theme: Theme) -> Drawing | None:
    """A row for each device; bars are its blocks' peaks, scaled so that all budgets are equally high."""
    devices = [device for device in run.devices if device.totals.blocks]
    picked = pick_rows(devices, lambda device: device.budget_share or 0.0, limit=_MEMORY_ROWS)
    rows = [row for device in picked for row in device_rows(device)]
    if not rows:
        return None
    figure, axes = new_figure(theme, WIDTH, 96 + 56 * len(rows))
    for index, (device, _, blocks) in enumerate(rows):
        base = float(len(rows) - 1 - index)
        budget = device.totals.budget_bytes
        highest = max(block.measured_peak_bytes or block.predicted_peak_bytes for block in blocks)
        for block in blocks:
            _memory_bar(axes, theme, block, base, budget, float(budget or highest), run.units)
        axes.axhline(base, color=theme.grid, linewidth=1.0)
        if budget:
            axes.plot([-0.5, run.units - 0.5], [base + _FULL] * 2, color=theme.ink, linewidth=1.3, zorder=4)
        note = f"budget {format_bytes(budget)}" if budget else "no budget"
        label_row(axes, theme, base + 0.4, device.name, note)
    _unit_axis(axes, run, theme, len(rows))
    place_rows(figure, axes, [*(device.name for device in picked), "budget 000.0 MiB"])
    handles = [
        Patch(facecolor=theme.bar, label="measured peak"),
        Patch(facecolor="none", edgecolor=theme.bar, linestyle="--", label="not measured: predicted"),
        axes.plot([], [], color=theme.second, linewidth=3.0, label="predicted peak")[0],
        axes.plot([], [], color=theme.ink, linewidth=1.3, label="the device's budget")[0],
        Patch(facecolor=theme.alarm, label="measured above the budget"),
    ]
    legend_above(axes, theme, handles)
    note = sample_note(len(picked), len(devices), "share of the budget")
    return Drawing(figure=figure, note=note)


def plans(run: RunFacts, theme: Theme) -> Drawing | None:
    """A row for each device; boxes are its blocks on the network's units."""
    devices = [device for device in run.devices if device.totals.blocks or device.totals.untrained_units]
    picked = pick_rows(devices, lambda device: float(device.totals.budget_bytes or 0))
    rows = [row for device in picked for row in device_rows(device)]
    if not rows:
        return None
    figure, axes = new_figure(theme, WIDTH, 96 + 30 * len(rows))
    for index, (device, lane, blocks) in enumerate(rows):
        base = float(len(rows) - 1 - index)
        for order, block in enumerate(blocks):
            width = block.last_unit - block.first_unit + 1
            axes.add_artist(
                Rectangle(
                    (block.first_unit - 0.46, base + 0.1), width - 0.08, 0.8, facecolor=BLOCK_COLOURS[order % 8],
                    edgecolor=theme.surface, linewidth=0.5, zorder=3,
                )
            )  # fmt: skip
            axes.text(
                block.first_unit + (width - 1) / 2, base + 0.5, str(block.batch_size), ha="center", va="center",
                fontsize=11, color=BLOCK_TEXT, zorder=4,
            )  # fmt: skip
        for unit in device.totals.untrained_units if lane == 0 else ():
            axes.add_artist(
                Rectangle(
                    (unit - 0.46, base + 0.1), 0.92, 0.8, facecolor="none", edgecolor=theme.muted, hatch="///",
                    linewidth=0.8, zorder=2,
                )
            )  # fmt: skip
        label_row(axes, theme, base + 0.5, device.name if lane == 0 else "(other plans)")
    _unit_axis(axes, run, theme, len(rows))
    place_rows(figure, axes, [device.name for device in picked])
    axes.grid(visible=False)
    handles = [
        Patch(facecolor=BLOCK_COLOURS[0], label="a block, with its batch size"),
        Patch(facecolor=BLOCK_COLOURS[1], label="the next one"),
        Patch(facecolor="none", edgecolor=theme.muted, hatch="///", label="does not fit the budget: not trained"),
        Patch(facecolor="none", edgecolor=theme.muted, linestyle=":", label="empty: not reached yet"),
    ]
    legend_above(axes, theme, handles)
    return Drawing(figure=figure, note=sample_note(len(picked), len(devices), "budget"))


def time_use(run: RunFacts, theme: Theme) -> Drawing | None:
    """A bar for each device: its seconds by activity."""
    idle: defaultdict[int, float] = defaultdict(float)
    for answer in run.answers:
        idle[answer.node_id] += idle_seconds(answer)
    spent = {device.totals.node_id: _spent(device, idle[device.totals.node_id]) for device in run.devices}
    devices = [device for device in run.devices if sum(spent[device.totals.node_id].values()) > 0]
    if not devices:
        return None
    picked = pick_rows(devices, lambda device: sum(spent[device.totals.node_id].values()))
    figure, axes = new_figure(theme, WIDTH, 96 + 26 * len(picked))
    longest = max(sum(spent[device.totals.node_id].values()) for device in picked)
    scale = time_scale(longest)
    lefts = dict.fromkeys((device.totals.node_id for device in picked), 0.0)
    for activity, colour in theme.activities:
        boxes = []
        for index, device in enumerate(picked):
            node_id = device.totals.node_id
            width = spent[node_id][activity] / scale.divisor
            boxes.append((lefts[node_id], len(picked) - 1 - index + 0.15, width, 0.7))
            lefts[node_id] += width
        add_boxes(axes, boxes, facecolor=colour, linewidth=0, zorder=3)
    for index, device in enumerate(picked):
        label_row(axes, theme, len(picked) - 1 - index + 0.5, device.name)
    axes.set_ylim(0, len(picked))
    axes.set_yticks([])
    axes.set_xlim(0, 1.02 * longest / scale.divisor)
    axes.xaxis.set_major_locator(MaxNLocator(8))
    axes.set_xlabel(f"{scale.unit} between being asked and answering, all rounds together")
    legend_above(axes, theme, activity_handles(theme))
    place_rows(figure, axes, [device.name for device in picked])
    notes = (sample_note(len(picked), len(devices), "time"), simulation_note(run))
    return Drawing(figure=figure, note=" ".join(note for note in notes if note))


def _spent(device: DeviceFacts, idle: float) -> dict[str, float]:
    """Seconds by activity: what the device says that it spent, and the rest of the time until its answers."""
    totals = device.totals
    others = totals.profile_seconds + totals.cache_seconds + totals.evaluate_seconds
    return {
        "profile": totals.profile_seconds,
        "train": max(0.0, totals.device_seconds - others),
        "cache": totals.cache_seconds,
        "evaluate": totals.evaluate_seconds,
        "waiting": idle,
    }


def idle_seconds(answer: Answer) -> float:
    """Time until an answer in which the device did none of its work: transport, polling, waiting."""
    if answer.seconds is None:
        return 0.0
    return max(0.0, answer.seconds - answer.profile - answer.train - answer.cache - answer.evaluate)


def simulation_note(run: RunFacts) -> str:
    """What is different about waiting where devices are simulated; empty where they are real."""
    return "In a simulation, devices also wait for a free worker process." if run.simulated else ""


def activity_handles(theme: Theme) -> list[Patch]:
    """Legend of the activities' colours."""
    names = {"evaluate": "score exits", "cache": "write the cache", "waiting": "transport and waiting"}
    return [Patch(facecolor=colour, label=names.get(activity, activity)) for activity, colour in theme.activities]


def device_rows(device: DeviceFacts) -> list[Row]:
    """A device's blocks in as few rows as hold them without overlap: plans may change from round to round."""
    lanes: list[list[BlockTotals]] = [[]]
    for block in sorted(device.totals.blocks, key=lambda block: (block.first_unit, block.last_unit)):
        free = (lane for lane in lanes if not lane or lane[-1].last_unit < block.first_unit)
        lane = next(free, None)
        if lane is None:
            lanes.append(lane := [])
        lane.append(block)
    return [(device, number, tuple(lane)) for number, lane in enumerate(lanes)]


def _memory_bar(
    axes: Axes, theme: Theme, block: BlockTotals, base: float, budget: int | None, full: float, units: int
) -> None:
    measured, predicted = block.measured_peak_bytes, block.predicted_peak_bytes
    shown = measured or predicted
    over = budget is not None and measured > budget
    left, width = block.first_unit - 0.44, block.last_unit - block.first_unit + 0.88
    height = _FULL * min(shown / full, _HIGHEST)
    colour = theme.alarm if over else theme.bar
    axes.add_artist(
        Rectangle(
            (left, base), width, min(height, _FULL), zorder=2, linewidth=0.0 if measured else 1.2,
            facecolor=colour if measured else "none", edgecolor=colour, linestyle="-" if measured else "--",
        )
    )  # fmt: skip
    if over:
        axes.add_artist(
            Rectangle(
                (left, base + _FULL), width, height - _FULL, zorder=2, linewidth=0.8, facecolor="none",
                edgecolor=colour, hatch="////",
            )
        )  # fmt: skip
    if measured and predicted:
        level = base + _FULL * min(predicted / full, _HIGHEST)
        axes.plot([left, left + width], [level, level], color=theme.second, linewidth=2.6, zorder=3)
    text = three_digits(shown / MIB)
    if over:
        # Two lines where a bar has no room for one.
        text += f"{' ' if width > units / 9 else chr(10)}({100 * shown / full:.0f} %)"
    # Inside the bar where it is high enough, else above all that is drawn there.
    inside = height > 0.28
    above = max(height, _FULL * min(predicted / full, _HIGHEST)) + 0.06
    axes.text(
        left + width / 2, base + (0.06 if inside else above), text, ha="center", va="bottom", fontsize=10.5,
        color=theme.surface if inside and measured else theme.ink, zorder=5, fontweight="bold" if over else "normal",
    )  # fmt: skip


def _unit_axis(axes: Axes, run: RunFacts, theme: Theme, rows: int) -> None:
    axes.set_xlim(-0.5, run.units - 0.5)
    axes.set_ylim(0, rows)
    axes.set_yticks([])
    axes.set_xticks(range(run.units))
    axes.set_xlabel("unit of the network, from the image (0) to the last")
    axes.grid(visible=False)
    for row in range(rows + 1):
        axes.axhline(row, color=theme.grid, linewidth=0.8, zorder=1)
