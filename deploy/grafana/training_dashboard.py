"""*Training*: the exits' accuracy over rounds and against size, stages, loss of each unit, what the rounds cost."""

from __future__ import annotations

from board import Line, Section, make_dashboard, query_variable
from grafana_foundation_sdk.models import dashboard as types
from panels import VALUE_AND_NAME, Text, bars, one_value, time_series
from queries import ROUND_STEP, Query, newest, rate
from queries import series as chosen
from tables import Column, against_label, against_quantity, value_table

from neuroflux_fl import metrics as m

_SPLIT = "$split"


def training_dashboard() -> types.Dashboard:
    """The dashboard of whoever wants to know what the network learns."""
    split = query_variable(
        "split", "Measured on", "Validation data of the devices, before a round, or the server's test data, after it.",
        f'{m.EXIT_ACCURACY.name}{{run="$run"}}',
    )  # fmt: skip
    sections = (_now(), _accuracy(), _stages(), _units(), _rounds())
    return make_dashboard("neuroflux-training", "What the network learns, exit by exit.", sections, split)


def _exits(split: str) -> str:
    return newest(m.EXIT_ACCURACY, "unit", split=split)


def _now() -> Section:
    best = f"topk(1, {_exits(_SPLIT)})"
    return Section(
        "Where does it stand?",
        (
            Line(4, (
                (4, one_value(
                    Text(title="Best exit", unit="percentunit", decimals=1, description="The unit whose exit is the "
                         "most accurate, and its accuracy. An exit is a model that ends at that unit."),
                    Query(best, "unit {{unit}}"), shows=VALUE_AND_NAME,
                )),
                (4, one_value(
                    Text(title="Size of the best exit", unit="short", decimals=2, description="Parameters of the model "
                         "that ends at the best exit, its head included."),
                    Query(f"{newest(m.EXIT_PARAMETERS, 'unit')} and on (unit) {best}", "unit {{unit}}"),
                    shows=VALUE_AND_NAME,
                )),
                (4, one_value(
                    Text(title="Round", unit="none", description="Rounds of the run that are complete."),
                    Query(newest(m.ROUND, "run"), "completed"),
                )),
                (4, one_value(
                    Text(title="Stage", unit="none", description="Stage in training, from 0. A stage is a group of "
                         "units; the ones before are frozen."),
                    Query(newest(m.STAGE, "run"), "stage"),
                )),
                (4, one_value(
                    Text(title="Without improvement", unit="none", description="Rounds of this stage since its best "
                         "exit last became better. At the run's patience the next stage begins, or the run ends."),
                    Query(newest(m.ROUNDS_WITHOUT_IMPROVEMENT, "run"), "rounds"), steps=((5, "orange"), (10, "red")),
                )),
                (4, one_value(
                    Text(title="Error of coded updates", unit="percentunit", decimals=3, description="Largest error "
                         "that float16 or int8 made in an update, as a share of what training moved; 0 for float32."),
                    Query(newest(m.UPDATE_ERROR, "run"), "largest"), steps=((0.05, "orange"), (0.2, "red")),
                )),
            )),
        ),
    )  # fmt: skip


def _accuracy() -> Section:
    def best(split: str) -> Query:
        return Query(f"max({chosen(m.EXIT_ACCURACY, split=split)})")

    return Section(
        "How good are the exits?",
        (
            Line(10, (
                (12, time_series(
                    Text(title="Accuracy of every exit", unit="percentunit", decimals=1, description="Deeper exits "
                         "are larger and, once trained, as a rule better. Exits that were not reached yet stay at "
                         "chance."),
                    Query(_exits(_SPLIT), "unit {{unit}}"), calculations=("lastNotNull", "max"),
                )),
                (12, against_quantity(
                    Text(title="Best exit against rounds", unit="percentunit", decimals=1, description="The same "
                         "network would give the same curve on faster devices: rounds are what it costs."),
                    ("Rounds", Query(newest(m.ROUND, "run"))),
                    ("validation", best("validation")), ("test", best("test")), x_unit="none", low=0.0,
                )),
            )),
            Line(10, (
                (12, against_label(
                    Text(title="Accuracy against size", unit="percentunit", decimals=1, description="Each point is an "
                         "exit. Those far up and to the left give the most for their size."),
                    ("Parameters", Query(newest(m.EXIT_PARAMETERS, "unit"))),
                    ("Validation", Query(_exits("validation"))), ("Test", Query(_exits("test"))),
                    label="unit", x_unit="short", low=0.0,
                )),
                (12, value_table(
                    Text(title="Exits", unit="none", description="One row an exit: the model that ends at that unit. "
                         "Contributors are the devices whose update of the unit went in in the last round."),
                    Column(name="Unit", label="unit"),
                    Column(name="Parameters", unit="short", decimals=2, query=Query(newest(m.EXIT_PARAMETERS, "unit"))),
                    Column(name="Validation", unit="percentunit", decimals=1, bar=True,
                           query=Query(_exits("validation"))),
                    Column(name="Test", unit="percentunit", decimals=1, bar=True, query=Query(_exits("test"))),
                    Column(name="Contributors", query=Query(newest(m.UNIT_CONTRIBUTORS, "unit"))),
                    sort_by="Parameters",
                )),
            )),
        ),
    )  # fmt: skip


def _stages() -> Section:
    return Section(
        "Does it still get better?",
        (
            Line(7, (
                (12, time_series(
                    Text(title="Stage", unit="none", decimals=0, description="Stage in training, from 0. A step up: "
                         "the fleet froze what it had and went deeper."),
                    Query(newest(m.STAGE, "run"), "stage"),
                )),
                (12, time_series(
                    Text(title="Rounds without improvement", unit="none", decimals=0, description="Rises by one a "
                         "round until the stage's best exit becomes better, then falls to 0. At 10 an alert fires."),
                    Query(newest(m.ROUNDS_WITHOUT_IMPROVEMENT, "run"), "rounds"), steps=((10, "red"),),
                )),
            )),
        ),
    )  # fmt: skip


def _units() -> Section:
    return Section(
        "What happens at each unit?",
        (
            Line(9, (
                (16, time_series(
                    Text(title="Loss", unit="none", decimals=3, description="Mean local loss at the head of each unit, "
                         "over the chosen devices' last passes."),
                    Query(f"avg by (unit) ({newest(m.DEVICE_UNIT_LOSS, 'device', 'unit')})", "unit {{unit}}"), low=None,
                )),
                (8, bars(
                    Text(title="Contributors", unit="none", decimals=0, description="Devices whose update of the unit "
                         "went into the model in the last round."),
                    Query(newest(m.UNIT_CONTRIBUTORS, "unit"), "unit {{unit}}"),
                )),
            )),
        ),
    )  # fmt: skip


def _rounds() -> Section:
    seconds = f"{chosen(m.ROUND_SECONDS, '_sum')} / {chosen(m.ROUND_SECONDS, '_count')}"
    return Section(
        "What do the rounds cost?",
        (
            Line(8, (
                (6, time_series(
                    Text(title="Mean round", unit="s", description="Mean duration of the run's rounds so far."),
                    Query(f"max by (run) ({seconds})", "mean"),
                )),
                (6, time_series(
                    Text(title="Work of all devices", unit="s", description="Time that all devices together have spent "
                         "on training tasks."),
                    Query(newest(m.DEVICE_SECONDS, "run"), "device seconds"),
                )),
                (6, time_series(
                    Text(title="Samples a second", unit="none", decimals=1, description="Training samples of the whole "
                         "fleet, passes counted. They are counted at a round's end."),
                    Query(rate(m.SAMPLES), "samples a second", ROUND_STEP), calculations=("mean", "max"),
                )),
                (6, time_series(
                    Text(title="Error of coded updates", unit="percentunit", decimals=3, description="Largest error of "
                         "coding an update in float16 or int8, as a share of what training moved; 0 for float32."),
                    Query(newest(m.UPDATE_ERROR, "run"), "largest"),
                )),
            )),
        ),
    )  # fmt: skip
