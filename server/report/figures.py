"""All figures of the page: their order, their titles, and how each is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from server.report import device_figures, learning_figures, round_figures
from server.report.canvas import Drawing, drawing_style, to_svg
from server.report.facts import RunFacts
from server.report.themes import THEMES, Theme


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One kind of figure."""

    key: str
    section: str
    title: str
    reading: str
    """For someone who sees such a figure for the first time."""
    draw: Callable[[RunFacts, Theme], Drawing | None]
    wide: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One figure of one run, as SVG in every theme by its name."""

    chart: Chart
    note: str
    svgs: dict[str, str]


CHARTS = (
    Chart(
        key="accuracy-rounds",
        section="learning",
        title="Accuracy by round",
        reading="Each line is an exit: the network cut off after that unit, with a small classifier on top. Lines that "
        "rise are learning; a flat end means that more rounds bring little. A dotted vertical line is the start of the "
        "next stage, ★ the exit that was chosen.",
        draw=learning_figures.accuracy_by_round,
    ),
    Chart(
        key="accuracy-time",
        section="learning",
        title="Accuracy by time",
        reading="The same lines against the clock, waiting for slow devices included. Compare runs by how early they "
        "reach the accuracy that you need.",
        draw=learning_figures.accuracy_by_time,
    ),
    Chart(
        key="accuracy-bytes",
        section="learning",
        title="Accuracy by traffic",
        reading="The same lines against all bytes that rounds sent through the network, to the devices and back. This "
        "is what a metered connection pays for.",
        draw=learning_figures.accuracy_by_bytes,
    ),
    Chart(
        key="accuracy-work",
        section="learning",
        title="Accuracy by work",
        reading="The same lines against the seconds of work of all devices added up, a measure of energy: two devices "
        "that work for one second are two device-seconds.",
        draw=learning_figures.accuracy_by_device_seconds,
    ),
    Chart(
        key="exits",
        section="exits",
        title="Accuracy and size of the exits",
        reading="Each point is a model that you could hand out, numbered by its last unit: further left is smaller, "
        "higher is better. The ring is the one that was chosen: the smallest that is nearly as good as the best on "
        "validation images.",
        draw=learning_figures.exits_by_parameters,
    ),
    Chart(
        key="memory",
        section="devices",
        title="Memory against budget, in MiB",
        reading="A row is a device and the line across it the device's own budget, so compare a bar with the line "
        "above it, not with other rows. Each bar is one block: the memory that training it really took at its peak, "
        "with a mark for what was predicted. Bars should end under the line; one in the colour of alarm went over it.",
        draw=device_figures.memory,
        wide=True,
    ),
    Chart(
        key="plans",
        section="devices",
        title="The plan of every device",
        reading="A row is a device and a box is a block: neighbouring units that it trains together. The number is the "
        "batch size; devices with little memory need smaller blocks and batches. Hatched units do not fit the device: "
        "others train them.",
        draw=device_figures.plans,
        wide=True,
    ),
    Chart(
        key="time-use",
        section="devices",
        title="Where the devices' time went",
        reading="A bar is the time of one device in tasks. Long grey parts mean that it waits for the network or the "
        "server rather than works; long cache parts that its disk is slow.",
        draw=device_figures.time_use,
        wide=True,
    ),
    Chart(
        key="timeline",
        section="rounds",
        title="Timeline of the rounds",
        reading="A row is a device and a bar reaches from the moment it was asked to its answer; vertical lines end a "
        "round. A round lasts as long as its longest bar, so framed stragglers are what slows the fleet. In gaps "
        "devices are asked what they can do, or score exits. Within a bar the parts are sorted by kind, not by time.",
        draw=round_figures.timeline,
        wide=True,
    ),
    Chart(
        key="answers",
        section="rounds",
        title="Time until the answers",
        reading="The bar spans the fastest to the slowest answer of a round, the dot is the median. A dot far below "
        "the top of its bar means that most devices wait for a few.",
        draw=round_figures.answer_times,
    ),
    Chart(
        key="traffic",
        section="rounds",
        title="Traffic by round",
        reading="What a round sent to the devices and what came back, over all devices. It rises where a new stage "
        "sends more units, and in its first round, when devices get the frozen units before it.",
        draw=round_figures.traffic,
    ),
)


def draw_all(run: RunFacts) -> Iterator[Picture]:
    """Every figure that there is something to draw for, in the order of ``CHARTS``."""
    with drawing_style():
        for chart in CHARTS:
            drawings = {theme.name: chart.draw(run, theme) for theme in THEMES}
            svgs = {
                name: to_svg(drawing.figure, f"{chart.key}-{name}", chart.title)
                for name, drawing in drawings.items()
                if drawing is not None
            }
            if svgs:
                note = next(drawing.note for drawing in drawings.values() if drawing is not None)
                yield Picture(chart=chart, note=note, svgs=svgs)
