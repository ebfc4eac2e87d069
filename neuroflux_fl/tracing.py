"""Trace a training step on fake tensors: live bytes, arithmetic and traffic at every operator, with no memory used.

Live bytes are counted by storage, as PyTorch's own ``MemTracker`` does (a test compares the two); this tracer also
adds the kernels' workspace and keeps every moment, because the moment of the peak changes with the batch size.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Trace:
    """One training step at one batch size."""

    live_bytes: tuple[int, ...]
    """Bytes held at each moment, workspace included. Two entries an operator: with the workspace that grows with the
    weights, and with the one that grows with the batch; the larger counts."""
    tensor_bytes: tuple[int, ...]
    """Tensors alone at each operator, without the kernels' workspace."""
    flops: float
    traffic_bytes: float
    operators: int


def trace_step(build: Callable[[], tuple[nn.Module, Callable[[], None]]]) -> Trace:
    """Trace the second call of a step; the first creates optimizer state and gradients.

    Args:
        build: called under fake mode (see ``unit_chain.empty_copy``); returns a module whose tensors live from the
            start, and the step. The step must drop its input and its gradients before it returns.
    """
    with FakeTensorMode(), _StepTracer() as tracer:
        module, step = build()
        step()
        tracer.begin()
        step()
        del module, step
        trace: Trace = tracer.trace()
    return trace


class _StepTracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._live = 0
        self._storages: set[int] = set()
        self.begin()

    def begin(self) -> None:
        self._moments: list[int] = []
        self._tensors: list[int] = []
        self._flops = 0.0
        self._traffic = 0.0

    def trace(self) -> Trace:
        return Trace(
            live_bytes=tuple(self._moments),
            tensor_bytes=tuple(self._tensors),
            flops=self._flops,
            traffic_bytes=self._traffic,
            operators=len(self._tensors),
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # This operator works in place and has no fake kernel: calling it would allocate the weights for real.
        out = None if func is aten._fused_sgd_.default else func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        fresh = sum(self._track(tensor) for tensor in outputs)
        self._moments.extend(self._live + workspace for workspace in workspace_bytes(func, args, out))
        self._tensors.append(self._live)
        if fresh or func in _IN_PLACE:
            inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            self._traffic += sum(_tensor_bytes(tensor) for tensor in (*inputs, *outputs))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self._flops += float(count(*args, **kwargs, out_val=out))
        return out

    def _track(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return 0
        size = storage.nbytes()
        self._storages.add(key)
        self._live += size
        weakref.finalize(storage, self._forget, key, size)
        return size

    def _forget(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self._live -= size


_IN_PLACE = {aten.relu_.default, aten.add_.Tensor, aten.mul_.Tensor}


def workspace_bytes(func: Any, args: Any, out: Any) -> tuple[int, int]:
    """Memory that a CPU convolution kernel takes beside its inputs and outputs: the larger of the two figures.

    oneDNN copies the weights (first figure), or input and output images (second), into a blocked layout. The rule was
    fitted on resident peaks: for every unit of VGG-16 and ResNet-18 with either head, at batches 8 to 256, tracing
    with it is between 0.3 MiB above and 1.1 MiB below the measured peak (``benchmarks/peak_memory.py``).
    """
    if func is aten.convolution.default:
        return _tensor_bytes(args[1]), _tensor_bytes(args[0]) + _tensor_bytes(out)
    if func is aten.convolution_backward.default:
        return _tensor_bytes(args[2]), _tensor_bytes(args[1]) + _tensor_bytes(args[0])
    return 0, 0


def _tensor_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
