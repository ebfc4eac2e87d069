"""Panels as this project draws them: each has a title, a description, a unit and a legend, or it cannot be made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import bargauge, common, heatmap, prometheus, stat, table, timeseries, xychart
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models import common as common_types
from grafana_foundation_sdk.models import dashboard as types
from grafana_foundation_sdk.models import heatmap as heatmap_types
from grafana_foundation_sdk.models import prometheus as prometheus_types
from queries import Query

SOURCE = common_types.DataSourceRef(type_val="prometheus", uid="${datasource}")
Step = tuple[float, str]
"""From this value on, this color."""
VALUE = common_types.BigValueTextMode.AUTO
NAME = common_types.BigValueTextMode.NAME
VALUE_AND_NAME = common_types.BigValueTextMode.VALUE_AND_NAME
LIVE_STEPS: tuple[Step, ...] = ((0.95, "orange"), (1.0, "red"))
"""Of memory as it is now, as a share of the budget."""
PEAK_STEPS: tuple[Step, ...] = ((1.0001, "red"),)
"""Of a block's peak: a good plan comes close to the budget, and none may go over."""
_Drawn = timeseries.Panel | stat.Panel | bargauge.Panel | table.Panel | xychart.Panel | heatmap.Panel


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """What every panel says of itself."""

    title: str
    description: str
    unit: str
    decimals: int | None = None


def time_series(
    text: Text,
    *queries: Query,
    steps: Sequence[Step] = (),
    stacked: bool = False,
    bars: bool = False,
    low: float | None = 0.0,
    high: float | None = None,
    soft_high: float | None = None,
    calculations: Sequence[str] = ("lastNotNull",),
) -> types.Panel:
    """Lines (or bars) over time, with a table of the series below."""
    panel = timeseries.Panel()
    describe(panel, text, queries)
    panel.legend(
        common.VizLegendOptions()
        .display_mode(common_types.LegendDisplayMode.TABLE)
        .placement(common_types.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(list(calculations))
    )
    panel.tooltip(
        common.VizTooltipOptions()
        .mode(common_types.TooltipDisplayMode.MULTI)
        .sort(common_types.SortOrder.DESCENDING)
    )  # fmt: skip
    panel.draw_style(common_types.GraphDrawStyle.BARS if bars else common_types.GraphDrawStyle.LINE)
    panel.line_width(1 if bars else 2).fill_opacity(70 if bars else 25 if stacked else 0)
    panel.show_points(common_types.VisibilityMode.NEVER)
    if stacked:
        panel.stacking(common.StackingConfig().mode(common_types.StackingMode.NORMAL).group("A"))
    if low is not None:
        panel.axis_soft_min(low)
        # An axis of nothing but zeros would go up to 100.
        soft_high = 1.0 if soft_high is None and text.unit == "none" else soft_high
    if soft_high is not None:
        panel.axis_soft_max(soft_high)
    if high is not None:
        panel.max(high)
    if steps:
        style = common_types.GraphThresholdsStyleMode.DASHED
        panel.thresholds(thresholds(steps, "transparent"))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(style))
    return panel.build()


def one_value(
    text: Text, *queries: Query, steps: Sequence[Step] = (), shows: common_types.BigValueTextMode = VALUE
) -> types.Panel:
    """The newest value in large, the series' name with it or in place of it; several series have their names anyway."""
    panel = stat.Panel()
    describe(panel, text, queries, newest_only=True)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
    panel.color_mode(common_types.BigValueColorMode.VALUE)
    panel.graph_mode(common_types.BigValueGraphMode.NONE)
    panel.text_mode(shows).justify_mode(common_types.BigValueJustifyMode.AUTO).wide_layout(True)
    panel.orientation(common_types.VizOrientation.AUTO)
    panel.thresholds(thresholds(steps, "green" if steps else "text"))
    return panel.build()


def bars(text: Text, *queries: Query, steps: Sequence[Step] = (), high: float | None = None) -> types.Panel:
    """A horizontal bar for the newest value of each series."""
    panel = bargauge.Panel()
    describe(panel, text, queries, newest_only=True)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
    panel.orientation(common_types.VizOrientation.HORIZONTAL)
    panel.display_mode(common_types.BarGaugeDisplayMode.BASIC)
    panel.value_mode(common_types.BarGaugeValueMode.COLOR)
    panel.name_placement(common_types.BarGaugeNamePlacement.LEFT).show_unfilled(True)
    panel.sizing(common_types.BarGaugeSizing.MANUAL).min_viz_height(14).max_viz_height(22)
    panel.min(0)
    if high is not None:
        panel.max(high)
    panel.thresholds(thresholds(steps, "green" if steps else "blue"))
    return panel.build()


def bucket_map(text: Text, query: Query) -> types.Panel:
    """A histogram's buckets over time; the darker a cell, the more observations."""
    panel = heatmap.Panel()
    describe(panel, text, [query], output=prometheus_types.PromQueryFormat.HEATMAP)
    panel.calculate(False).cell_gap(1)
    panel.color(
        heatmap.HeatmapColorOptions()
        .mode(heatmap_types.HeatmapColorMode.SCHEME)
        .scheme("Blues")
        .steps(32)
        .reverse(False)
    )
    panel.y_axis(heatmap.YAxisConfig().unit(text.unit).axis_placement(common_types.AxisPlacement.LEFT))
    panel.tooltip(heatmap.HeatmapTooltip().mode(common_types.TooltipDisplayMode.SINGLE).y_histogram(False))
    panel.cell_values(heatmap.CellValues().unit("short"))
    panel.show_legend()
    return panel.build()


def describe(
    panel: _Drawn,
    text: Text,
    queries: Sequence[Query],
    *,
    as_table: bool = False,
    newest_only: bool = False,
    output: prometheus_types.PromQueryFormat | None = None,
) -> None:
    """Give a panel its texts and queries.

    Args:
        panel: to be described.
        text: what it says of itself.
        queries: A, B and so on.
        as_table: ask for the newest values only, with labels as columns.
        newest_only: ask for the newest values only: in a range there are ended series as well.
        output: format of the answer, where it is neither a table nor a time series.

    Raises:
        ValueError: a text is empty, or there is no query.
    """
    if not (text.title and text.description and text.unit and queries):
        raise ValueError(f"Panel '{text.title}' needs a title, a description, a unit and a query.")
    panel.title(text.title).description(text.description).unit(text.unit).datasource(SOURCE)
    if text.decimals is not None:
        panel.decimals(text.decimals)
    for letter, query in zip(letters(len(queries)), queries, strict=True):
        target = prometheus.Dataquery().datasource(SOURCE).ref_id(letter).expr(query.expression)
        target.legend_format(query.legend or "__auto")
        if as_table or newest_only:
            target.instant()
        else:
            target.range()
        target.format(
            output
            or (prometheus_types.PromQueryFormat.TABLE if as_table else prometheus_types.PromQueryFormat.TIME_SERIES)
        )
        target.editor_mode(prometheus_types.QueryEditorMode.CODE)
        if query.minimum_step:
            target.interval(query.minimum_step)
        panel.with_target(target)


def letters(count: int) -> list[str]:
    """Names of a panel's queries: A, B, C."""
    return [chr(ord("A") + number) for number in range(count)]


def thresholds(steps: Sequence[Step], first: str) -> build.ThresholdsConfig:
    """Colors by value: the first one below all steps."""
    colors: list[tuple[float | None, str]] = [(None, first), *steps]
    return (
        build.ThresholdsConfig()
        .mode(types.ThresholdsMode.ABSOLUTE)
        .steps([types.Threshold(value=value, color=color) for value, color in colors])
    )
