"""Works on a request in this process. Importing this module imports torch."""

from __future__ import annotations

from clients.device import Device
from clients.identity import identify
from clients.request import DeviceAnswer, DeviceRequest
from neuroflux_fl.errors import WireError
from neuroflux_fl.run_config import RunConfig
from neuroflux_fl.training_monitor import TrainingMonitor
from neuroflux_fl.wire import EvaluateTask, TrainTask


def perform(request: DeviceRequest, monitor: TrainingMonitor | None = None) -> DeviceAnswer:
    """Do what the request asks for, and tell the monitor meanwhile.

    Raises:
        NeurofluxError: a configuration, task or array that cannot be worked with.
    """
    config = RunConfig.from_flat(request.run_config)
    monitor = monitor or TrainingMonitor()
    with monitor.task(config.run_name):
        return _perform(request, config, monitor)


def _perform(request: DeviceRequest, config: RunConfig, monitor: TrainingMonitor) -> DeviceAnswer:
    identity = identify(request.node_config, config, run_id=request.run_id, node_id=request.node_id)
    device = Device(config, identity, monitor)
    if request.kind == "capabilities":
        return DeviceAnswer(content=device.capabilities().to_bytes())
    if request.kind == "evaluate":
        scores = device.evaluate(EvaluateTask.from_bytes(request.task), request.arrays)
        return DeviceAnswer(content=scores.to_bytes())
    if request.kind != "train":
        raise WireError(f"Request is of kind {request.kind!r}: this release knows capabilities, train and evaluate.")
    report, arrays = device.train(TrainTask.from_bytes(request.task), request.arrays)
    examples = max((update.examples for update in report.updates), default=0)
    return DeviceAnswer(content=report.to_bytes(), examples=examples, arrays=dict(arrays))
