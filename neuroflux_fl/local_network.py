"""Units with their heads: what is trained, stored, sent and averaged under one number."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from neuroflux_fl.heads import HeadSettings, describe_heads
from neuroflux_fl.packing import PackLayout
from neuroflux_fl.unit_chain import UnitChain, empty_copy


class UnitWithHead(nn.Module):
    """One unit and its auxiliary head. Names of tensors begin with ``unit.`` or ``head.``."""

    def __init__(self, unit: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.unit = unit
        self.head = head


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalNetwork:
    """A unit chain with a head on every unit. A description: modules may be on the meta device."""

    chain: UnitChain
    heads: tuple[nn.Module, ...]
    head_settings: HeadSettings
    norm: str

    def __len__(self) -> int:
        return len(self.chain)

    def layout(self, unit: int) -> PackLayout:
        """How the tensors of ``unit`` and its head lie in one packed float32 array."""
        pair = UnitWithHead(self.chain.units[unit], self.heads[unit])
        parameters = {name: tuple(value.shape) for name, value in pair.named_parameters()}
        buffers = {name: tuple(value.shape) for name, value in pair.named_buffers() if value.is_floating_point()}
        return PackLayout(
            unit_parameters=tuple((n, s) for n, s in parameters.items() if n.startswith("unit.")),
            unit_buffers=tuple((n, s) for n, s in buffers.items() if n.startswith("unit.")),
            head_parameters=tuple((n, s) for n, s in parameters.items() if n.startswith("head.")),
            head_buffers=tuple((n, s) for n, s in buffers.items() if n.startswith("head.")),
        )

    def empty(
        self,
        unit: int,
        device: torch.device,
        *,
        with_head: bool = True,
        prepare: Callable[[nn.Module], object] | None = None,
    ) -> UnitWithHead:
        """The pair with uninitialised weights, in training mode.

        Args:
            unit: its number.
            device: where its tensors are.
            with_head: without it, the head stays on the meta device and takes no memory.
            prepare: called with the pair while all of it is on the meta device, to replace modules in place or lay
                weights out otherwise: later that would hold each weight twice.
        """
        pair = UnitWithHead(empty_copy(self.chain.units[unit]), empty_copy(self.heads[unit]))
        if prepare is not None:
            prepare(pair)
        pair = UnitWithHead(empty_copy(pair.unit, device), empty_copy(pair.head, device if with_head else "meta"))
        for buffer in pair.buffers():
            if not buffer.is_floating_point():
                buffer.zero_()  # batch-norm counters: never stored, because nothing reads them
        return pair

    def initial(self, unit: int, seed: int) -> NDArray[np.float32]:
        """Packed start weights of one unit: a function of (seed, unit), or the user's own weights where given."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.SeedSequence([seed, unit]).generate_state(1)[0]))
            pair = UnitWithHead(_materialise(self.chain.units[unit]), _materialise(self.heads[unit]))
        return self.layout(unit).pack({name: tensor.numpy() for name, tensor in stored_tensors(pair).items()})


def stored_tensors(pair: UnitWithHead) -> dict[str, Tensor]:
    """Detached parameters and buffers by name, but those on the meta device."""
    tensors = dict(pair.named_parameters()) | dict(pair.named_buffers())
    return {name: tensor.detach() for name, tensor in tensors.items() if not tensor.is_meta}


def build_network(chain: UnitChain, settings: HeadSettings, norm: str = "batch") -> LocalNetwork:
    """Put a head on every unit of the chain."""
    return LocalNetwork(chain=chain, heads=describe_heads(chain, settings, norm), head_settings=settings, norm=norm)


def unit_parameters(layout: PackLayout) -> int:
    """Trainable numbers of the unit alone."""
    return sum(int(np.prod(shape)) for _, shape in layout.unit_parameters)


def head_parameters(layout: PackLayout) -> int:
    """Trainable numbers of the head alone."""
    return sum(int(np.prod(shape)) for _, shape in layout.head_parameters)


EMPTY_PREFIX = "images"
"""Version of the prefix of no units: the images themselves."""


def unit_digest(pieces: Iterable[NDArray[np.float32]]) -> str:
    """A hash of one packed unit, its head left out by the caller, in pieces of any length."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(np.ascontiguousarray(piece).view(np.uint8).data)
    return digest.hexdigest()


def prefix_version(digests: Iterable[str]) -> str:
    """Version of a prefix: a hash over its units' digests. Equal prefixes have equal versions."""
    version = EMPTY_PREFIX
    for digest in digests:
        version = hashlib.sha256(f"{version} {digest}".encode()).hexdigest()
    return version


def _materialise(module: nn.Module) -> nn.Module:
    if not any(value.is_meta for value in (*module.parameters(), *module.buffers())):
        return copy.deepcopy(module)
    module = empty_copy(module, "cpu")
    for part in module.modules():
        _initialise(part)
    return module


def _initialise(module: nn.Module) -> None:
    # torchvision's rules for VGG and ResNet: He initialisation by fan-out, norms at identity.
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.Linear)):
        module.reset_parameters()
