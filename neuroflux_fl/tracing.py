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

from neuroflux_fl.compute import layout_of

aten = torch.ops.aten
_FLOAT_BYTES = 4
_PACKED_BYTES, _PACKED_BYTES_PER_COLUMN = 512 * 1024, 768  # MKL's buffers for matrix products, fitted
_LARGEST_BATCH = 256  # as far as batches go; a trace's rules must hold for all of them


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
    """Those that compute or copy; views are not counted."""


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
        self._operators = 0
        self._traffic = 0.0
        self._kept = 0

    def trace(self) -> Trace:
        return Trace(
            live_bytes=tuple(moment + self._kept for moment in self._moments),
            tensor_bytes=tuple(self._tensors),
            flops=self._flops,
            traffic_bytes=self._traffic,
            operators=self._operators,
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # This operator works in place and has no fake kernel: calling it would allocate the weights for real.
        out = None if func is aten._fused_sgd_.default else func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        fresh = sum(self._track(tensor) for tensor in outputs)
        self._moments.extend(self._live + workspace for workspace in workspace_bytes(func, args, out))
        self._tensors.append(self._live)
        self._kept = max(self._kept, kept_workspace_bytes(func, out))
        if fresh or func in _IN_PLACE:
            self._operators += 1
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


_IN_PLACE = {
    aten.relu_.default, aten.add_.Tensor, aten.mul_.Tensor, aten.copy_.default, aten.zero_.default, aten.addmm.out,
    aten.mm.out, aten._fused_sgd_.default,
}  # fmt: skip


def workspace_bytes(func: Any, args: Any, out: Any) -> tuple[int, int]:
    """Memory that a CPU convolution kernel takes beside its inputs and outputs: the larger of the two figures.

    oneDNN copies the weights (first figure), or input and output images (second), into a blocked layout; images that
    are channels_last it takes as they are, but then copies weights and their gradient. With bfloat16 it sums weight
    gradients in float32, once for each of two threads where images outweigh weights. The rules were fitted on
    resident peaks: for every unit of VGG-16 and ResNet-18 with either head, at batches 4 to 256 (float32; 4 to 128
    otherwise), tracing with them is at most 1.3 MiB below the measured peak (``benchmarks/peak_memory.py``).
    """
    if func is aten.convolution.default:
        images, weights, results = args[0], args[1], out
        copies = _tensor_bytes(weights)
    elif func is aten.convolution_backward.default:
        results, images, weights = args[0], args[1], args[2]
        copies = _gradient_copies(images, weights, results)
    else:
        return 0, 0
    if layout_of(images) == torch.channels_last:
        return copies, 0
    moved = _tensor_bytes(images) + _tensor_bytes(results)
    return copies, moved if weights.dtype == torch.float32 else moved + copies


def kept_workspace_bytes(func: Any, out: Any) -> int:
    """Memory that a CPU kernel takes at its first call and does not give back: MKL's buffers for matrix products."""
    if func not in (aten.addmm.out, aten.mm.out):
        return 0
    return int(_PACKED_BYTES + _PACKED_BYTES_PER_COLUMN * out.shape[1] * torch.get_num_threads())


def _gradient_copies(images: Tensor, weights: Tensor, results: Tensor) -> int:
    if weights.dtype == torch.float32:
        blocked = weights.is_contiguous() or weights.shape[2:].numel() == 1
        return _tensor_bytes(weights) * (1 if blocked else 2)
    per_sample = (images.numel() + results.numel()) // len(images)
    shared = torch.get_num_threads() > 1 and _LARGEST_BATCH * per_sample > weights.numel()
    return _FLOAT_BYTES * weights.numel() * (2 if shared else 1)


def _tensor_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
