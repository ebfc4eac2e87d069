"""Which addresses Prometheus is sent to: devices say them, so none may lead it astray."""

from __future__ import annotations

import pytest

from server.device_totals import DeviceTotals
from server.scrape_targets import is_scrapable, scrape_targets


def device(node_id: int, address: str, device_class: str = "pi") -> DeviceTotals:
    return DeviceTotals(node_id=node_id, metrics_address=address, device_class=device_class)


def test_targets_are_called_by_the_names_that_devices_were_enrolled_with() -> None:
    devices = [device(7, "10.0.0.5:9100"), device(2**63, "[fd00::1]:9100", ""), device(9, "")]

    assert scrape_targets(devices, {7: "kitchen"}, most_devices=10) == [
        {"targets": ["10.0.0.5:9100"], "labels": {"device": "kitchen", "device_class": "pi"}},
        {"targets": ["[fd00::1]:9100"], "labels": {"device": f"node-{2**63}", "device_class": "unknown"}},
    ]


def test_targets_and_classes_are_bounded() -> None:
    devices = [device(number, "pi.local:9100", f"class-{number}") for number in range(10)]

    found = scrape_targets(devices, {}, most_devices=5, most_classes=2)
    assert [target["labels"]["device_class"] for target in found] == ["class-0", "class-1", "other", "other", "other"]


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:9100", "192.168.1.10:1", "pi-4.local:65535", "jetson_1:9100", "host.example.org.:80", "[::1]:9100"],
)
def test_hosts_with_ports_can_be_scraped(address: str) -> None:
    assert is_scrapable(address)


@pytest.mark.parametrize(
    "address",
    [
        "", "host", "host:", ":9100", "host:0", "host:65536", "host:999999", "host:9100/metrics", "host:9100?x=1",
        "user@host:9100", "http://host:9100", "host :9100", "host:9100\n", "-host:9100", "host..x:9100",
        "a" * 64 + ":1", "::1:9100", "[host]:9100", "[::1:9100", "hôte:9100", "host:\u0669\u0661",
        "169.254.169.254:80", "[fe80::1]:9100", "[::ffff:169.254.169.254]:80", "0.0.0.0:9100", "[::]:80",
        "224.0.0.1:80", "255.255.255.255:80", "2852039166:80", "0xa9fea9fe:80", "0251.0376.0251.0376:80",
        "169.254.43518:80",
        ".".join(["a" * 60] * 5) + ":80",
    ],
)  # fmt: skip
def test_nothing_else_can(address: str) -> None:
    assert not is_scrapable(address)
