"""The files of deploy/: their formats' own linters, and that they agree with the commands and with each other."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml  # type: ignore[import-untyped]

from clients.budget import HOST_RESERVE_BYTES
from clients.client_commands import ClientState
from neuroflux_fl.cli.main import app
from neuroflux_fl.run_config import RunConfig
from neuroflux_fl.sizes import parse_bytes

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
DROP_IN = DEPLOY / "systemd" / "neuroflux-client-cuda.conf"
COMMANDS = "/opt/neuroflux/bin/"
SET_BY_SYSTEMD = {"STATE_DIRECTORY"}
MONITORING = {"prometheus", "alertmanager", "grafana"}
WRITABLE = {"/bundles", "/certs"}
VARIABLE = re.compile(r"\$\{?([A-Z_]+)\}?")


def _tool(name: str, remedy: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: {remedy}")
    return found


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60, check=False)


def _settings() -> dict[str, str]:
    lines = (DEPLOY / "environment.example").read_text().splitlines()
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def _fill(text: str) -> str:
    values = _settings() | dict.fromkeys(SET_BY_SYSTEMD, "/var/lib/neuroflux")
    return VARIABLE.sub(lambda match: values[match.group(1)], text)


def _uncommented(path: Path) -> str:
    return "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))


def _services() -> dict[str, dict[str, Any]]:
    services: dict[str, dict[str, Any]] = yaml.safe_load((DEPLOY / "compose.yml").read_text())["services"]
    return services


def _ours() -> dict[str, dict[str, Any]]:
    return {name: service for name, service in _services().items() if service["image"].startswith("neuroflux-fl-")}


def _devices() -> dict[str, dict[str, Any]]:
    return {name: service for name, service in _services().items() if "-client:" in service["image"]}


def _exec_start(unit: Path) -> list[str]:
    found = re.search(r"^ExecStart=((?:.*\\\n)*.*)$", unit.read_text(), re.MULTILINE)
    assert found is not None
    return shlex.split(_fill(found.group(1).replace("\\\n", " ")))


def _instructions() -> list[str]:
    """The container file's instructions, each as one line."""
    text = _uncommented(DEPLOY / "Containerfile").replace("\\\n", "")
    return [line for line in text.splitlines() if line.strip()]


def _commands() -> dict[str, list[str]]:
    """Every command line of ``neuroflux-fl`` that a file of deploy/ starts, without the program's name."""
    commands = {unit.name: _exec_start(unit)[1:] for unit in UNITS}
    for name, service in _ours().items():
        entrypoint = service.get("entrypoint", ["neuroflux-fl"])[1:]
        commands[name] = [_fill(part) for part in entrypoint + service.get("command", [])]
    for number, line in enumerate(_instructions()):
        if line.startswith("CMD "):
            commands[f"Containerfile {number}"] = json.loads(line.removeprefix("CMD "))
    return commands


def _units_to_verify(folder: Path) -> list[Path]:
    """Copies whose command exists on this machine, and the drop-in at its place."""
    copies = []
    for unit in UNITS:
        copies.append(folder / unit.name)
        copies[-1].write_text(unit.read_text().replace(COMMANDS + "neuroflux-fl", sys.executable))
    drop_ins = folder / "neuroflux-client.service.d"
    drop_ins.mkdir()
    shutil.copy(DROP_IN, drop_ins / "cuda.conf")
    return copies


def _requirements_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("container_requirements", DEPLOY / "container_requirements.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_compose_file_is_valid() -> None:
    tool = _tool("check-jsonschema", 'pip install -e ".[dev]"')
    done = _run(tool, "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yml")
    assert done.returncode == 0, done.stdout


def test_container_file_passes_hadolint() -> None:
    done = _run(_tool("hadolint", 'pip install -e ".[dev]"'), DEPLOY / "Containerfile")
    assert done.returncode == 0, done.stdout


def test_units_are_valid(tmp_path: Path) -> None:
    # An unknown setting is a warning with status 0, so what is printed counts as well.
    done = _run(_tool("systemd-analyze", "it is part of systemd"), "verify", "--man=no", *_units_to_verify(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_are_hardened(unit: Path) -> None:
    # Exposure from 0 to 10, in tenths; 50 and above is what systemd calls exposed.
    tool = _tool("systemd-analyze", "it is part of systemd")
    done = _run(tool, "security", "--offline=true", "--threshold=15", unit)
    if "offline" in done.stderr:
        pytest.skip("this systemd has no offline check of units: 250 has")
    assert done.returncode == 0, done.stdout.splitlines()[-1]


@pytest.mark.parametrize(("name", "command"), _commands().items(), ids=_commands().keys())
def test_every_command_line_is_one_that_the_program_takes(name: str, command: list[str]) -> None:
    group = typer.main.get_command(app)
    context = group.make_context("neuroflux-fl", [command[0], "--help"])
    subcommand = group.get_command(context, command[0])  # type: ignore[attr-defined]
    arguments = command[1:]
    if arguments != ["--help"]:
        subcommand.make_context(command[0], arguments)


def test_every_setting_is_explained_and_used() -> None:
    files = [DEPLOY / "compose.yml", *UNITS, DROP_IN]
    used = {name for file in files for name in VARIABLE.findall(_uncommented(file))}
    assert used - SET_BY_SYSTEMD == set(_settings())
    before = ""
    for line in (DEPLOY / "environment.example").read_text().splitlines():
        if line and not line.startswith("#"):
            assert before.startswith("# "), f"{line} has no explanation above it"
        before = line


def test_every_value_that_the_gate_needs_is_set() -> None:
    needed = set(re.findall(r"\$\{(GATE_\w+)\}", (DEPLOY / "nginx" / "gate.conf.template").read_text()))
    assert needed == {name for name in _services()["gate"]["environment"] if name.startswith("GATE_")}


def test_every_image_has_a_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    base = next(line for line in _instructions() if line.startswith("ARG BASE_IMAGE="))
    images = {name: service["image"] for name, service in _services().items()} | {"base": base.partition("=")[2]}
    for name, image in images.items():
        tag = image.rpartition(":")[2] if ":" in image else ""
        assert tag[:1].isdigit() or re.match(r"v\d", tag), f"{name}: {image}"
        assert not image.startswith("neuroflux-fl-") or tag == version, f"{name}: {image}"
    assert f'image.version="{version}"' in " ".join(_instructions())


def test_no_secret_is_in_a_file() -> None:
    secret = re.compile(r"PRIVATE KEY-----|(password|passwd|token|api[_-]?key)\s*[=:]\s*\S", re.IGNORECASE)
    # What a deployment keeps there is not part of the project.
    private = {line.strip("/") for line in (DEPLOY / ".gitignore").read_text().splitlines()} | {"__pycache__"}
    for file in DEPLOY.rglob("*"):
        if file.is_file() and private.isdisjoint(file.relative_to(DEPLOY).parts):
            assert secret.search(file.read_text()) is None, file


@pytest.mark.parametrize("name", _services().keys())
def test_every_container_is_hardened(name: str) -> None:
    service = _services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["user"].partition(":")[0]) > 0
    assert "restart" in service
    for volume in service.get("volumes", []):
        if isinstance(volume, str):
            source, _, *options = volume.split(":")
            assert options == ["ro"] or "/" not in source, volume
        else:
            assert volume.get("read_only") is True or volume["target"] in WRITABLE, volume


def test_devices_reach_the_gate_and_nothing_else() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yml").read_text())
    services, networks = _services(), compose["networks"]
    beside = {
        network: {name for name, service in services.items() if network in service.get("networks", [])}
        for network in networks
    }
    assert networks["devices"]["internal"] is True
    assert networks["backend"]["internal"] is True
    assert beside["devices"] == {"gate", *_devices()}
    assert beside["backend"] == {"gate", "server", "prometheus"}
    assert beside["monitoring"] == MONITORING
    assert all(services[name]["profiles"] == ["monitoring"] for name in MONITORING)
    published = {name for name, service in services.items() if "ports" in service}
    assert published == {"gate", "prometheus", "grafana"}
    assert all(port.startswith("127.0.0.1:") for name in MONITORING for port in services[name].get("ports", []))
    assert len(_devices()) >= 2


def test_devices_differ_and_have_room_for_their_budgets() -> None:
    budgets, shares = {}, set()
    for name, service in _devices().items():
        command = service["command"]
        budgets[name] = parse_bytes(command[command.index("--budget") + 1])
        shares.add(command[command.index("--partition-id") + 1])
        assert command[command.index("--partitions") + 1] == str(len(_devices()))
        limit = parse_bytes(re.sub(r"([mg])$", r"\1ib", service["mem_limit"]))
        assert limit >= budgets[name] + HOST_RESERVE_BYTES, name
    assert len(set(budgets.values())) == len(shares) == len(budgets)


def test_the_build_context_holds_what_the_container_file_copies() -> None:
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }  # all else is left out by "*"
    copied = {
        source
        for line in _instructions()
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)


def test_health_checks_compile_and_know_the_devices_state_folder() -> None:
    checks = [json.loads(line.partition(" CMD ")[2]) for line in _instructions() if line.startswith("HEALTHCHECK ")]
    assert len(checks) == 2
    for program, flag, code in checks:
        assert (program, flag) == ("python", "-c")
        compile(code, "healthcheck", "exec")
    state = Path(_devices()["small"]["command"][_devices()["small"]["command"].index("--state") + 1])
    assert f"'{ClientState(state).last_connected}'" in checks[1][2]


def test_the_example_run_is_a_configuration() -> None:
    values = RunConfig.from_toml(DEPLOY / "run.example.toml")
    assert values["min-nodes"] == len(_devices())
    RunConfig.from_flat(values)


def test_requirements_are_those_of_the_project_and_its_extras() -> None:
    text = '[project]\ndependencies = ["a>=1"]\n[project.optional-dependencies]\nx = ["b"]\ny = ["c[d]>=2"]\n'
    module = _requirements_module()
    assert module.requirements(text, []) == ["a>=1"]
    assert module.requirements(text, ["y", "x"]) == ["a>=1", "c[d]>=2", "b"]
    with pytest.raises(ValueError, match="'z' is unknown"):
        module.requirements(text, ["z"])


def test_pins_leave_the_base_images_packages_alone() -> None:
    pins = _requirements_module().pins("# set\ntorch==2.13.0\nTorchVision==0.28\nflwr==1.41.0\n", {"torch": "2.6+nv"})
    assert pins == ["# set", "TorchVision==0.28", "flwr==1.41.0", "torch==2.6+nv"]
    pins = _requirements_module().pins("TorchVision==0.28\ntorch==2.13.0\n", {"torchvision": "0.21+nv"})
    assert pins == ["torch==2.13.0", "torchvision==0.21+nv"]
