"""The stream on which a phase's steps run."""

from typing import Protocol


class UseStream(Protocol):
    """Makes a stream the one on which the calling thread's work runs."""

    def __call__(self, handle: int, num_sms: int) -> None:
        """`handle`: a CUstream; `num_sms`: those that its work can run on, for whoever sizes grids by them."""
        ...


def use_torch_stream(handle: int, num_sms: int) -> None:
    """torch's current stream of the calling thread from now on: graphs are kept by it, grids sized by its SMs."""
    import torch

    stream = torch.cuda.ExternalStream(handle)  # type: ignore[no-untyped-call]
    torch.cuda.set_stream(stream)
