"""Which devices Prometheus can scrape by itself, in the form of its HTTP service discovery."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any

from server.device_totals import DeviceTotals
from server.telemetry_store import OTHER, UNKNOWN

_ADDRESS = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})\Z")
_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?\Z")
_LONGEST_HOST = 253


def scrape_targets(
    devices: Iterable[DeviceTotals], names: Mapping[int, str], *, most_devices: int, most_classes: int = 20
) -> list[dict[str, Any]]:
    """A target for each device that announced where its metrics are.

    Args:
        devices: of the run's state.
        names: what devices were enrolled as, by node id; others are called by their node id.
        most_devices: targets at most; the first ones.
        most_classes: different values of the label ``device_class`` at most; the others are ``other``.
    """
    targets: list[dict[str, Any]] = []
    classes: set[str] = set()
    for device in devices:
        if len(targets) == most_devices:
            break
        if not is_scrapable(device.metrics_address):
            continue
        device_class = device.device_class or UNKNOWN
        if device_class not in classes and len(classes) >= most_classes:
            device_class = OTHER
        classes.add(device_class)
        labels = {"device": names.get(device.node_id, f"node-{device.node_id}"), "device_class": device_class}
        targets.append({"targets": [device.metrics_address], "labels": labels})
    return targets


def is_scrapable(address: str) -> bool:
    """Whether ``HOST:PORT`` is one that another machine's metrics can have.

    A device says it of itself, so it must not be able to send Prometheus anywhere else: no path, no user, none of the
    addresses that mean a machine's surroundings (cloud providers keep credentials at a link-local one).
    """
    found = _ADDRESS.match(address)
    if found is None or not 1 <= int(found["port"]) <= 65535:
        return False
    host = found["host"].strip("[]")
    try:
        place = ipaddress.ip_address(host)
    except ValueError:
        # Numbers and dots alone are some spelling of an address to a resolver, not a name.
        numeric = not re.search("[A-Za-z]", host) or host.lower().startswith("0x")
        return ":" not in host and not numeric and len(host) <= _LONGEST_HOST and _NAME.match(host) is not None
    if isinstance(place, ipaddress.IPv6Address):
        place = place.ipv4_mapped or place
    reserved = isinstance(place, ipaddress.IPv4Address) and place.is_reserved  # of IPv6, the loopback is
    return not (place.is_link_local or place.is_multicast or place.is_unspecified or reserved)
