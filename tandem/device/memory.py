"""Memory segments: memd creates and exports them, phases map them.

A segment is known by its name and travels as a file descriptor, with what `SegmentHandle` says beside it. Exporting
needs no device context; mapping gives a `MappedSegment` at an address that stays valid until it is closed.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class SegmentKind(StrEnum):
    """What a segment's descriptor names, and so which importer maps it."""

    MEMFD = "memfd"
    CUDA_VMM = "cuda-vmm"  # device memory exported by cuMemExportToShareableHandle
    CUDA_IPC = "cuda-ipc"  # a memfd that holds the handle of cuIpcGetMemHandle

    @property
    def ends_with_its_maker(self) -> bool:
        """Whether a descriptor, wherever it is kept, does not keep the memory itself."""
        return self is SegmentKind.CUDA_IPC


class SegmentHandle(Protocol):
    """What must be known of a segment to map it."""

    @property
    def name(self) -> str:
        """Such as ``weights``, ``kv``, ``ledger``."""
        ...

    @property
    def fd(self) -> int:
        """Owned by whoever made or received it."""
        ...

    @property
    def size_bytes(self) -> int:
        """As mapped by everybody."""
        ...

    @property
    def kind(self) -> SegmentKind:
        """Of the memory behind it."""
        ...

    @property
    def sealed(self) -> bool:
        """Whether it was sealed when it was handed out."""
        ...


class ExportedSegment(SegmentHandle, Protocol):
    """A segment on its owner's side, which owns the descriptor until `close`."""

    def seal(self) -> None:
        """From now on nobody can map the segment writable.

        The kernel holds a memfd to it. No driver call does so for CUDA memory: there every importer of ours refuses,
        which stops a mistake, but no process of the same user that calls the driver itself.
        """
        ...

    def close(self) -> None:
        """Gives up the descriptor; mappings elsewhere stay valid, those of ``cuda-ipc`` excepted."""
        ...


class MappedSegment(Protocol):
    """A segment mapped into this process."""

    @property
    def size_bytes(self) -> int:
        """Of the mapping."""
        ...

    def tensor(self, dtype: str, shape: Sequence[int], offset_bytes: int = 0) -> "torch.Tensor":
        """A view, no copy. ValueError when it would reach past the segment's end."""
        ...

    def close(self) -> None:
        """Waits for the device's work on it and unmaps; no view of it may be in use."""
        ...


class MemoryExporter(Protocol):
    """What memd needs of a device."""

    @property
    def kind(self) -> SegmentKind:
        """Of the segments that it creates."""
        ...

    def create(self, name: str, size_bytes: int) -> ExportedSegment:
        """A segment of at least that size; a memfd is zeroed, device memory holds anything.

        DeviceError when the memory is not to be had, with sizes and remedy.
        """
        ...


class SegmentMapper(Protocol):
    """What a phase needs of a device."""

    def map(self, handle: SegmentHandle, *, writable: bool) -> MappedSegment:
        """Maps what the handle names; the caller keeps its descriptor. Without `writable` the caller must not write,
        and where the kind allows it cannot (``cuda-ipc`` does not). DeviceError when it cannot be mapped so.
        """
        ...


class MemoryImporter(SegmentMapper, Protocol):
    """What memd's loader needs of a device, and what maps one kind of segment."""

    def free_bytes(self) -> int:
        """Memory that the device has for new segments now."""
        ...
