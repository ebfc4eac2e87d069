"""Panels whose queries are joined: a table with a row for each device or unit, and one quantity against another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grafana_foundation_sdk.builders import common, table, xychart
from grafana_foundation_sdk.models import common as common_types
from grafana_foundation_sdk.models import dashboard as types
from grafana_foundation_sdk.models import table as table_types
from grafana_foundation_sdk.models import xychart as xychart_types
from panels import Step, Text, describe, letters, thresholds
from queries import Query


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table."""

    name: str
    query: Query | None = None
    """None: the column is the label ``label``."""
    label: str = ""
    unit: str = "none"
    decimals: int | None = None
    steps: Sequence[Step] = ()
    """Colors of the text."""
    words: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Text and color by value."""
    bar: bool = False
    """Drawn as a bar from 0 to 1."""
    link: str = ""
    width: int | None = None


def value_table(text: Text, *columns: Column, sort_by: str) -> types.Panel:
    """A row for every combination of the labels that all queries have."""
    queries = [column.query for column in columns if column.query is not None]
    panel = table.Panel()
    describe(panel, text, queries, as_table=True)
    letter = iter(letters(len(queries)))
    names = {column.label if column.query is None else f"Value #{next(letter)}": column.name for column in columns}
    _merge(panel, names)
    panel.sort_by([common.TableSortByFieldState().display_name(sort_by).desc(False)])
    panel.show_header(True).cell_height(common_types.TableCellHeight.SM)
    panel.cell_options(common_types.TableAutoCellOptions()).min_width(80).thresholds(thresholds((), "text"))
    for column in columns:
        panel.override_by_name(column.name, _properties(column))
    built = panel.build()
    if isinstance(built.options, table_types.Options):
        built.options.footer = None  # Grafana's own types have it no more
    return built


def against_label(
    text: Text, x: tuple[str, Query], *ys: tuple[str, Query], label: str, x_unit: str, low: float
) -> types.Panel:
    """Points, one for each value of a label; every quantity has a name and a query that keeps the label."""
    named = (x, *ys)
    panel = xychart.Panel()
    describe(panel, text, [query for _, query in named], as_table=True)
    columns = {f"Value #{letter}": name for letter, (name, _) in zip(letters(len(named)), named, strict=True)}
    _merge(panel, {label: label.capitalize()} | columns)
    panel.show(xychart_types.XYShowMode.POINTS).point_size(xychart.XychartFieldConfigPointSize().fixed(10))
    return _finish_xy(panel, x[0], [name for name, _ in ys], x_unit, low)


def against_quantity(text: Text, x: tuple[str, Query], *ys: tuple[str, Query], x_unit: str, low: float) -> types.Panel:
    """Quantities over another one as all of them went in time; every query gives one series, its name the legend."""
    panel = xychart.Panel()
    describe(panel, text, [Query(query.expression, name, query.minimum_step) for name, query in (x, *ys)])
    join = types.DataTransformerConfig(id_val="joinByField", options={"byField": "Time", "mode": "outer"})
    panel.with_transformation(join)
    panel.show(xychart_types.XYShowMode.POINTS_AND_LINES)
    panel.point_size(xychart.XychartFieldConfigPointSize().fixed(5))
    return _finish_xy(panel, x[0], [name for name, _ in ys], x_unit, low)


def _finish_xy(panel: xychart.Panel, x: str, ys: Sequence[str], x_unit: str, low: float) -> types.Panel:
    panel.mapping(xychart_types.SeriesMapping.MANUAL).series([_xy_series(x, y) for y in ys])
    panel.axis_soft_min(low)
    panel.legend(
        common.VizLegendOptions()
        .display_mode(common_types.LegendDisplayMode.LIST)
        .placement(common_types.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs([])
    )
    panel.tooltip(
        common.VizTooltipOptions().mode(common_types.TooltipDisplayMode.SINGLE).sort(common_types.SortOrder.NONE)
    )
    axis = {"unit": x_unit, "custom.axisLabel": x}
    panel.override_by_name(x, [types.DynamicConfigValue(id_val=name, value=value) for name, value in axis.items()])
    return panel.build()


def _xy_series(x: str, y: str) -> xychart.XYSeriesConfig:
    def by_name(name: str) -> xychart.MatcherConfig:
        return xychart.MatcherConfig().id("byName").options(name)

    return (
        xychart.XYSeriesConfig()
        .name(xychart.XychartXYSeriesConfigName().fixed(y))
        .x(xychart.XychartXYSeriesConfigX().matcher(by_name(x)))
        .y(xychart.XychartXYSeriesConfigY().matcher(by_name(y)))
    )


def _merge(panel: table.Panel | xychart.Panel, names: Mapping[str, str]) -> None:
    """One frame of all queries, with its fields in this order under these names, and without the time."""
    panel.with_transformation(types.DataTransformerConfig(id_val="merge", options={}))
    panel.with_transformation(
        types.DataTransformerConfig(
            id_val="organize",
            options={
                "excludeByName": {"Time": True},
                "indexByName": {name: place for place, name in enumerate(names)},
                "renameByName": dict(names),
            },
        )
    )


def _properties(column: Column) -> list[types.DynamicConfigValue]:
    values: dict[str, Any] = {"unit": column.unit}
    if column.decimals is not None:
        values["decimals"] = column.decimals
    if column.width is not None:
        values["custom.width"] = column.width
    if column.words:
        results = {
            value: types.ValueMappingResult(text=text, color=color, index=place)
            for place, (value, (text, color)) in enumerate(column.words.items())
        }
        values["mappings"] = [types.ValueMap(options=results)]
    if column.steps:
        values["thresholds"] = thresholds(column.steps, "green").build()
    if column.bar:
        values.setdefault("thresholds", thresholds((), "blue").build())
        values["min"], values["max"] = 0, 1
        values["custom.cellOptions"] = {"type": "gauge", "mode": "basic", "valueDisplayMode": "text"}
    elif column.steps or column.words:
        values["custom.cellOptions"] = {"type": "color-text"}
    if column.link:
        values["links"] = [{"title": "Look at this device", "url": column.link, "targetBlank": False}]
    return [types.DynamicConfigValue(id_val=name, value=value) for name, value in values.items()]
