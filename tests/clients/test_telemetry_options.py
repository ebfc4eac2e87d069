"""Which roads readings take, from what was asked for."""

from __future__ import annotations

import socket

import pytest

from clients.telemetry_options import announced_address, device_name, gateway_addresses
from neuroflux_fl.errors import UsageError

SERVER = "fleet.example.org:8443"


@pytest.mark.parametrize(
    ("choice", "scraped", "addresses"),
    [
        (None, False, (SERVER, "fleet.example.org:8444")),
        (None, True, ()),
        ("auto", True, (SERVER, "fleet.example.org:8444")),
        ("off", False, ()),
        ("other.example.org:9", True, ("other.example.org:9",)),
    ],
)
def test_where_to_push(choice: str | None, scraped: bool, addresses: tuple[str, ...]) -> None:
    assert gateway_addresses(choice, SERVER, scraped=scraped) == addresses


def test_ports_and_hosts_at_the_edge() -> None:
    assert gateway_addresses("auto", "[::1]:8443", scraped=False) == ("[::1]:8443", "[::1]:8444")
    assert gateway_addresses("auto", "fleet:65535", scraped=False) == ("fleet:65535",)


def test_a_choice_that_is_none() -> None:
    with pytest.raises(UsageError, match="Telemetry 'on' is unknown: give auto, off or HOST:PORT"):
        gateway_addresses("on", SERVER, scraped=False)


def test_what_is_announced() -> None:
    assert announced_address("10.1.2.3", 9465, SERVER) == "10.1.2.3:9465"
    assert announced_address("fe80::7", 9465, SERVER) == "[fe80::7]:9465"
    assert announced_address("0.0.0.0", 9465, "127.0.0.1:8443") == "127.0.0.1:9465", "as the server sees it"
    with pytest.raises(UsageError, match=r"'two words:9465' .* --metrics-host"):
        announced_address("two words", 9465, SERVER)


def test_a_server_whose_name_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(socket, "gethostname", lambda: "shelf")

    assert announced_address("0.0.0.0", 9465, SERVER) == "shelf:9465"


def test_what_a_device_is_called() -> None:
    assert device_name("kitchen", {"partition-id": 3}) == "kitchen"
    assert device_name("", {"partition-id": 3}) == "device-3"
    assert device_name("", {}) == socket.gethostname()
