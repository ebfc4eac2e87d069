"""A whole dashboard: variables and links that all of them share, and panels put into rows without gaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models import dashboard as types
from panels import SOURCE

from neuroflux_fl import metrics as m

COLUMNS = 24
"""Of Grafana's grid; one is 60 pixels on a page of 1440."""
FOLDER_TAG = "neuroflux-fl"
TITLES = {
    "neuroflux-fleet": "NeuroFlux fleet",
    "neuroflux-device": "NeuroFlux device",
    "neuroflux-training": "NeuroFlux training",
}
"""Title by uid, in the order of their links."""


@dataclass(frozen=True, slots=True)
class Line:
    """Panels side by side, as high as each other; each with its width, and the widths fill the grid."""

    height: int
    panels: Sequence[tuple[int, types.Panel]]


@dataclass(frozen=True, slots=True)
class Section:
    """Lines under a heading that can be folded."""

    title: str
    lines: Sequence[Line]


def make_dashboard(
    uid: str, description: str, sections: Sequence[Section], *more_variables: build.QueryVariable
) -> types.Dashboard:
    """The dashboard with its variables, links to the others, and every panel in its place.

    Raises:
        ValueError: a line does not fill the grid.
    """
    head = build.Dashboard(TITLES[uid]).uid(uid).description(description).tags([FOLDER_TAG])
    head.timezone("browser").tooltip(types.DashboardCursorSync.CROSSHAIR).refresh("10s").time("now-1h", "now")
    head.readonly()
    head.variables([_source_variable(), *_query_variables(), *more_variables])
    head.links([_link_to(other) for other in TITLES if other != uid])
    dashboard = head.build()
    for variable in dashboard.templating.list_val or ():
        # Of interval variables; Grafana's own types have them at no other kind.
        variable.auto = variable.auto_count = variable.auto_min = None
    dashboard.panels = _placed(sections)
    return dashboard


def query_variable(name: str, label: str, description: str, expression: str) -> build.QueryVariable:
    """A variable whose values are those of a label: ``expression`` is a selector, the label the variable's name."""
    query = f"label_values({expression}, {name})"
    return (
        build.QueryVariable(name)
        .label(label)
        .description(description)
        .datasource(SOURCE)
        .query({"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"})
        .refresh(types.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(types.VariableSort.NATURAL_ASC)
    )


def device_link() -> str:
    """Address of the dashboard *Device* for the row's device, with the same run and time."""
    uid = "neuroflux-device"
    same = "${datasource:queryparam}&${run:queryparam}&${__url_time_range}"
    return f"/d/{uid}/{uid}?{same}&var-device=${{__data.fields.Device}}"


def _source_variable() -> build.DatasourceVariable:
    return build.DatasourceVariable("datasource").label("Data source").type("prometheus").description(
        "The Prometheus that scrapes the fleet."
    )  # fmt: skip


def _query_variables() -> list[build.QueryVariable]:
    """Run, class and device; the newest run comes first, since its name begins with its date."""
    connected = m.DEVICE_CONNECTED.name
    run = query_variable("run", "Run", "A training run of the fleet.", m.PHASE.name)
    device_class = query_variable(
        "device_class", "Class", "Devices of these classes only.", f'{connected}{{run="$run"}}'
    )
    device = query_variable(
        "device", "Device", "These devices only.", f'{connected}{{run="$run", device_class=~"$device_class"}}'
    )
    several = [variable.multi(True).include_all(True).all_value(".*") for variable in (device_class, device)]
    return [run.sort(types.VariableSort.NATURAL_DESC), *several]


def _link_to(uid: str) -> build.DashboardLink:
    return (
        build.DashboardLink(TITLES[uid])
        .type(types.DashboardLinkType.LINK)
        .url(f"/d/{uid}/{uid}")
        .icon("dashboard")
        .tooltip("The same run and time")
        .include_vars(True)
        .keep_time(True)
    )


def _placed(sections: Sequence[Section]) -> list[types.Panel | types.RowPanel]:
    placed: list[types.Panel | types.RowPanel] = []
    top = 0
    for section in sections:
        heading = types.GridPos(h=1, w=COLUMNS, x=0, y=top)
        placed.append(types.RowPanel(title=section.title, grid_pos=heading, id_val=len(placed) + 1))
        top += 1
        for line in section.lines:
            if sum(width for width, _ in line.panels) != COLUMNS:
                titles = [panel.title for _, panel in line.panels]
                raise ValueError(f"The line of {titles} is not {COLUMNS} columns wide.")
            left = 0
            for width, panel in line.panels:
                panel.grid_pos = types.GridPos(h=line.height, w=width, x=left, y=top)
                panel.id_val = len(placed) + 1
                placed.append(panel)
                left += width
            top += line.height
    return placed
