"""One typed, frozen configuration of a fleet run, read from Flower's flat run configuration, a TOML file or flags."""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from neuroflux_fl.activation_cache import PRECISIONS
from neuroflux_fl.block_training import TrainSettings
from neuroflux_fl.compute import ComputeSettings
from neuroflux_fl.data.description import DataDescription
from neuroflux_fl.errors import ConfigError
from neuroflux_fl.heads import HeadSettings
from neuroflux_fl.local_step import OptimizerSettings
from neuroflux_fl.planning import PlannerSettings
from neuroflux_fl.sizes import parse_bytes
from neuroflux_fl.update_codec import PRECISIONS as UPDATE_PRECISIONS

Value = bool | int | float | str

METHODS = ("neuroflux", "backprop-all", "backprop-fitting")
SCHEDULES = ("progressive", "joint")
AGGREGATIONS = ("fedavg", "fednova")
PARTITIONS = ("iid", "dirichlet", "shards")
LONGEST_RUN_NAME = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Settings of a run that server and devices share. In files and flags, words are joined by hyphens."""

    model: str = "vgg11"
    """vgg11, vgg13, vgg16, vgg19, resnet18 or resnet34."""
    width: float = 0.25
    """Factor on the channels of a VGG."""
    norm: str = "batch"
    """batch or group."""
    data: str = "digits"
    """digits, cifar10, cifar100, fashion-mnist, or a folder of images or Parquet files."""
    image_side: int = 0
    """Resize images to this many pixels; 0 keeps the data set's own size."""
    train_limit: int = 0
    """Use this many training images; 0 uses all."""
    test_limit: int = 0
    """Use this many test images; 0 uses all."""
    image_shape: str = ""
    """Channels x height x width, for example 3x32x32. This and the next three describe the data to devices that hold
    only data of their own; ``neuroflux-fl server`` fills them in, and empty means: as in ``data``."""
    class_names: str = ""
    """A JSON list, in the order of the class numbers."""
    mean: str = ""
    """Of the pixels scaled to 0..1, a number for each channel, joined by commas."""
    std: str = ""
    """Likewise."""
    head: str = "compact"
    """compact, conv, separable or pooled."""
    head_rule: str = "adaptive"
    """adaptive or fixed."""
    head_filters: int = 64
    """Filters of a head; with the adaptive rule the most allowed."""
    head_share: float = 1.0
    """Adaptive rule: a head's activations over its unit's, at most."""
    budgets: str = "6MiB,8MiB,12MiB,24MiB"
    """Memory budgets, dealt out to the simulated devices in turn. Real devices bring their own."""
    partition: str = "dirichlet"
    """How the data is dealt out: iid, dirichlet or shards."""
    alpha: float = 1.0
    """Dirichlet concentration: small is uneven, large is even."""
    shards_per_device: int = 2
    """Only for shards."""
    validation_fraction: float = 0.15
    """Share of a device's images kept for validation."""
    require_all_classes: bool = False
    """Refuse a partition in which some device has no image of some class."""
    method: str = "neuroflux"
    """neuroflux; or FedAvg with backpropagation: backprop-all (budgets ignored), backprop-fitting (only devices whose
    budget holds it)."""
    schedule: str = "progressive"
    """progressive: one stage of units after the other; joint: all units in every round."""
    stage_units: int = 4
    """Units in a stage of the progressive schedule."""
    aggregation: str = "fedavg"
    """fedavg or fednova."""
    num_server_rounds: int = 12
    """Rounds in all."""
    local_epochs: int = 2
    """Passes over its own data that a device makes in a round."""
    patience: int = 3
    """Rounds without a better validation accuracy after which a stage ends."""
    min_improvement: float = 0.002
    """Deepening goes on while a stage improves the best exit by more than this."""
    cohort: int = 0
    """Devices in a round; 0 takes all."""
    over_selection: float = 0.0
    """Share of devices that a round asks beyond its cohort; it ends when as many as the cohort have answered."""
    quorum: int = 1
    """Good replies that a round needs; with fewer it waits for devices to come back."""
    unit_quorum: int = 1
    """Updates that a unit needs in a round; with fewer it keeps its value."""
    min_nodes: int = 1
    """Devices that must be connected for a round to begin."""
    wait_seconds: float = 300.0
    """How long to wait for them, and for a quorum."""
    deadline_seconds: float = 0.0
    """Time that a round may take; 0 is no deadline."""
    reconnect_seconds: float = 90.0
    """How long a round waits for a device that was lost, to send it its task again. Flower takes up to 60 s to let a
    restarted device in."""
    task_attempts: int = 3
    """How often a task is sent to a device that is lost again and again."""
    late_rounds: int = 2
    """An answer that comes up to this many rounds late is still used; 0 uses none."""
    staleness_discount: float = 0.5
    """Weight of a late answer for each round that it is late."""
    update_precision: str = "float32"
    """What trained units travel in: float32, float16 or int8."""
    poll_seconds: float = 3.0
    """Pause between polls for replies; in-process fleets do not pause."""
    planner: str = "fastest"
    """fastest or threshold."""
    reach: int = 0
    """Units that one gradient passes through, at most; 0 is as many as memory allows at a useful batch size."""
    rho: float = 0.4
    """Threshold planner: how far batch sizes of merged units may differ."""
    measure_speed: bool = False
    """Devices plan with their own measured speed; off, plans are a function of the configuration alone."""
    precision: str = "float32"
    """What devices compute in: float32, bfloat16 or, on GPUs, float16. Weights are float32 in any case."""
    channels_last: bool = False
    """Devices keep images and activations channels last; which is faster depends on the device."""
    maximum_batch: int = 64
    """Largest batch size of any block."""
    learning_rate: float = 0.1
    """At batch 64; grows linearly with the batch size."""
    momentum: float = 0.9
    weight_decay: float = 0.0005
    similarity: float = 5.0
    """Weight of the similarity loss beside cross-entropy in local losses; backpropagation has none."""
    views: int = 4
    """Cached views of the data, the plain one included; 1 is no augmentation."""
    cache_precision: str = "float16"
    """float16 or float32."""
    cache_quota: str = ""
    """Largest size of a device's cache, for example 500MiB; empty is no quota."""
    standard_errors: float = 1.0
    """The shallowest exit within so many standard errors of the best validation accuracy is handed out; 0: the best."""
    server_tests: bool = True
    """The server scores exits on the data set's test split; off where the server has no data."""
    run_name: str = ""
    """Label of the run's metrics. Empty: ``simulate`` takes its folder's name, ``neuroflux-fl server`` the time."""
    out: str = ""
    """Folder for run.json, rounds.jsonl, the fleet's state and the exit; empty writes nothing."""
    resume: bool = False
    """Go on from the state in ``out``, where there is one."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("method", self.method, METHODS),
            ("schedule", self.schedule, SCHEDULES),
            ("aggregation", self.aggregation, AGGREGATIONS),
            ("partition", self.partition, PARTITIONS),
            ("cache-precision", self.cache_precision, tuple(PRECISIONS)),
            ("update-precision", self.update_precision, UPDATE_PRECISIONS),
        ):
            if value not in allowed:
                raise ConfigError(f"{name} {value!r} is unknown: choose one of {', '.join(allowed)}.")
        for name, number, least in (
            ("num-server-rounds", self.num_server_rounds, 1),
            ("local-epochs", self.local_epochs, 1),
            ("patience", self.patience, 1),
            ("stage-units", self.stage_units, 1),
            ("quorum", self.quorum, 1),
            ("unit-quorum", self.unit_quorum, 1),
            ("over-selection", self.over_selection, 0),
            ("reconnect-seconds", self.reconnect_seconds, 0),
            ("task-attempts", self.task_attempts, 1),
            ("late-rounds", self.late_rounds, 0),
            ("min-nodes", self.min_nodes, 1),
            ("maximum-batch", self.maximum_batch, 2),
            ("cohort", self.cohort, 0),
            ("image-side", self.image_side, 0),
            ("train-limit", self.train_limit, 0),
            ("test-limit", self.test_limit, 0),
            ("deadline-seconds", self.deadline_seconds, 0),
            ("poll-seconds", self.poll_seconds, 0),
            ("wait-seconds", self.wait_seconds, 0),
            ("min-improvement", self.min_improvement, 0),
            ("seed", self.seed, 0),
        ):
            if not number >= least:
                raise ConfigError(f"{name} is {number}: give at least {least}.")
        if not self.alpha > 0:
            raise ConfigError(f"alpha is {self.alpha}: a Dirichlet partition needs a number above 0, for example 1.0.")
        if not 0 < self.validation_fraction < 1:
            raise ConfigError(f"validation-fraction is {self.validation_fraction}: give a share between 0 and 1.")
        if not 0 <= self.staleness_discount <= 1:
            raise ConfigError(f"staleness-discount is {self.staleness_discount}: give a factor from 0 to 1.")
        if not 0 <= self.standard_errors < math.inf:
            raise ConfigError(
                f"standard-errors is {self.standard_errors}: give a finite number of 0 or more, for example 1."
            )
        if len(self.run_name) > LONGEST_RUN_NAME or not self.run_name.isprintable():
            raise ConfigError(
                f"run-name {self.run_name!r} is no name: give at most {LONGEST_RUN_NAME} printable characters."
            )
        if self.cache_quota:
            parse_bytes(self.cache_quota)
        self.data_description()
        # Made here once, so that a bad value is found before anything starts.
        self.budget_list()
        self.head_settings()
        self.planner_settings(examples=self.maximum_batch)
        self.train_settings()

    def budget_list(self) -> tuple[int, ...]:
        """Budgets in bytes, in the order given."""
        if not self.budgets.strip():
            raise ConfigError("budgets is empty: give at least one size, for example 64MiB.")
        return tuple(parse_bytes(part) for part in self.budgets.split(","))

    def data_description(self) -> DataDescription | None:
        """The data that devices must have; None where the configuration does not say.

        Raises:
            ConfigError: only a part is given, or the parts do not fit together.
        """
        given = (self.image_shape, self.class_names, self.mean, self.std)
        if not any(given):
            return None
        rule = (
            f"image-shape {self.image_shape!r}, class-names {self.class_names!r}, mean {self.mean!r} and std "
            f'{self.std!r} do not describe data: give all four, for example 1x28x28, ["cat", "dog"], 0.5 and 0.25.'
        )
        try:
            channels, height, width = (int(part) for part in self.image_shape.split("x"))
            mean, std = (tuple(float(part) for part in text.split(",")) for text in (self.mean, self.std))
            names = json.loads(self.class_names)
        except ValueError as error:
            raise ConfigError(rule) from error
        right_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
        right_sizes = min(channels, height, width) > 0 and len(mean) == len(std) == channels
        if not right_sizes or not right_names or len(set(names)) != len(names) or len(names) < 2 or min(std) <= 0:
            raise ConfigError(rule)
        return DataDescription(image_shape=(channels, height, width), class_names=tuple(names), mean=mean, std=std)

    def head_settings(self) -> HeadSettings:
        """The heads of all devices."""
        return HeadSettings(kind=self.head, rule=self.head_rule, filters=self.head_filters, share=self.head_share)

    def planner_settings(self, *, examples: int) -> PlannerSettings:
        """Settings for a device with this many training images: at least eight steps a pass."""
        smallest = 2 if self.norm == "batch" else 1
        return PlannerSettings(
            planner=self.planner,
            reach=self.reach,
            rho=self.rho,
            minimum_batch=smallest,
            maximum_batch=max(smallest, min(self.maximum_batch, examples // 8)),
            learning_rate=self.learning_rate,
            maximum_learning_rate=4 * self.learning_rate,
            passes=max(1, self.num_server_rounds * self.local_epochs),
            views=self.views,
        )

    def train_settings(self) -> TrainSettings:
        """One round on one device: the rate falls from round to round, not within one."""
        return TrainSettings(
            epochs=self.local_epochs,
            patience=None,
            warmup_share=0.0,
            final_rate_share=1.0,
            views=self.views,
            optimizer=OptimizerSettings(
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                similarity=self.similarity if self.method == "neuroflux" else 0.0,
            ),
            compute=ComputeSettings(precision=self.precision, channels_last=self.channels_last),
            seed=self.seed,
        )

    def to_flat(self) -> dict[str, Value]:
        """As Flower's run configuration: ``{"num-server-rounds": 12, ...}``."""
        return {_flat_name(field.name): getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_flat(cls, values: Mapping[str, Value]) -> RunConfig:
        """Read a flat configuration; missing keys take their defaults.

        Raises:
            ConfigError: an unknown key (the nearest known one is named), a value of the wrong type, or one that
                breaks a rule.
        """
        known = {_flat_name(field.name): field for field in fields(cls)}
        arguments: dict[str, Value] = {}
        for key, value in values.items():
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else f" Known keys: {', '.join(sorted(known))}."
                raise ConfigError(f"Configuration key {key!r} is unknown.{hint}")
            default = known[key].default
            arguments[known[key].name] = _as_type_of(default, key, value)
        return cls(**arguments)  # type: ignore[arg-type]

    @classmethod
    def from_toml(cls, path: Path) -> dict[str, Value]:
        """Flat values of a TOML file; ``from_flat`` checks them.

        Raises:
            ConfigError: the file cannot be read, is not TOML, or holds a table.
        """
        try:
            values = tomllib.loads(path.read_text())
        except OSError as error:
            raise ConfigError(f"Configuration {path} cannot be read: {error.strerror}.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"Configuration {path} is not TOML: {error}.") from error
        for key, value in values.items():
            if not isinstance(value, (bool, int, float, str)):
                raise ConfigError(
                    f"Configuration {path} has {key!r} as a {type(value).__name__}: write flat keys only."
                )
        return values


def _flat_name(name: str) -> str:
    return name.replace("_", "-")


def _as_type_of(default: object, key: str, value: Value) -> Value:
    if isinstance(default, bool) and isinstance(value, bool):
        return value
    if isinstance(default, float) and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, int) and not isinstance(default, bool) and type(value) is int:
        return value
    if isinstance(default, str) and isinstance(value, str):
        return value
    raise ConfigError(f"Configuration key {key!r} is {value!r}: it must be of type {type(default).__name__}.")
