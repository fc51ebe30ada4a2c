"""CUDA graphs as a small port: a step is captured once for the stream on which it runs, and then replayed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from tandem.device.cuda.step_stream import use_torch_stream


@dataclass(frozen=True, slots=True)
class StreamShare:
    """Where the calling thread's work runs: a stream, and how many SMs its work can use."""

    stream: int
    num_sms: int


class GraphBackend(Protocol):
    """What the steps need of CUDA's graphs; called on the thread that computes."""

    def share(self) -> StreamShare:
        """The calling thread's."""
        ...

    def capture(self, compute: Callable[[], None]) -> Callable[[], None]:
        """Records what `compute` launches, without running it; the answer launches it again on the same memory.

        `compute` has run before on this stream, and waits for nothing.
        """
        ...

    def wait(self) -> None:
        """Until the calling thread's stream has done what it was given; other threads go on meanwhile."""
        ...


class StepStream:
    """Remembers the SMs of the stream that a partition backend chose; its `use` is a `UseStream`."""

    def __init__(self) -> None:
        self.num_sms: int | None = None  # None: no backend has chosen one, so all

    def use(self, handle: int, num_sms: int) -> None:
        """See `UseStream`."""
        use_torch_stream(handle, num_sms)
        self.num_sms = num_sms


class TorchGraphs:
    """A `GraphBackend` over torch. All graphs share one memory pool: only one of them runs at a time."""

    def __init__(self, device: torch.device, stream: StepStream) -> None:
        self._device = device
        self._stream = stream
        self._all_sms = torch.cuda.get_device_properties(device).multi_processor_count
        self._pool = torch.cuda.graph_pool_handle()

    def share(self) -> StreamShare:
        """See `GraphBackend`."""
        return StreamShare(torch.cuda.current_stream(self._device).cuda_stream, self._stream.num_sms or self._all_sms)

    def capture(self, compute: Callable[[], None]) -> Callable[[], None]:
        """See `GraphBackend`. Other threads may use CUDA meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._capturing_stream(), capture_error_mode="thread_local"
        ):
            compute()
        return graph.replay

    def wait(self) -> None:
        """See `GraphBackend`."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        event.synchronize()

    def _capturing_stream(self) -> torch.cuda.Stream:
        """The current one, whose SMs the graph's kernels then keep to; the default stream cannot capture."""
        current = torch.cuda.current_stream(self._device)
        return current if current.cuda_stream else torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
