"""Graphs on a processor that hold a step to what CUDA's would: a replay reads the memory that its capture read."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tandem.runner.cuda.graphs import StreamShare


class _Reads(TorchDispatchMode):
    """Which memory that was there before is read."""

    def __init__(self) -> None:
        super().__init__()
        self.before: set[int] = set()
        self._made: dict[int, torch.UntypedStorage] = {}  # held, so that no address is given twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.ops.aten.lift_fresh.default:  # a constant on its way into the computation
            for tensor in _tensors((args, kwargs)):
                if tensor.untyped_storage().data_ptr() not in self._made:
                    self.before.add(tensor.untyped_storage().data_ptr())
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            if tensor.untyped_storage().data_ptr() not in self.before:
                self._made[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return result


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class RecordedGraphs:
    """A `GraphBackend`. `share_of_thread` may be set, as a partition backend would."""

    def __init__(self) -> None:
        self.share_of_thread = StreamShare(7, 132)
        self.num_captures = 0
        self.num_replays = 0
        self.num_waits = 0

    def share(self) -> StreamShare:
        return self.share_of_thread

    def capture(self, compute: Callable[[], None]) -> Callable[[], None]:
        self.num_captures += 1
        stream = self.share_of_thread.stream
        with _Reads() as captured:
            compute()

        def replay() -> None:
            assert stream == self.share_of_thread.stream, "a graph keeps the SMs of the stream that it was captured on"
            self.num_replays += 1
            with _Reads() as replayed:
                compute()
            assert replayed.before <= captured.before, "a replay cannot read memory that was not there at the capture"

        return replay

    def wait(self) -> None:
        self.num_waits += 1
