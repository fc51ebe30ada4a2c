"""Memory segments: memd creates and exports them, phases map them.

A segment is known by its name and travels as a file descriptor. Exporting needs no device context; mapping gives a
`MappedSegment` at an address that stays valid until it is closed.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class ExportedSegment(Protocol):
    """A segment on its owner's side."""

    @property
    def name(self) -> str:
        """Such as ``weights``, ``kv``, ``ledger``."""
        ...

    @property
    def size_bytes(self) -> int:
        """As mapped by everybody."""
        ...

    @property
    def fd(self) -> int:
        """Owned by the segment until `close`."""
        ...

    def seal(self) -> None:
        """From now on nobody can map the segment writable or change its size."""
        ...

    def close(self) -> None:
        """Gives up the descriptor; mappings elsewhere stay valid."""
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
        """Unmaps; no view of it may be in use."""
        ...


class MemoryExporter(Protocol):
    """What memd needs of a device."""

    def create(self, name: str, size_bytes: int) -> ExportedSegment:
        """A zeroed segment. DeviceError when the memory is not to be had, with sizes and remedy."""
        ...


class MemoryImporter(Protocol):
    """What a phase needs of a device."""

    def map(self, fd: int, size_bytes: int, *, writable: bool) -> MappedSegment:
        """Maps what `fd` names; the caller keeps `fd`. DeviceError when it cannot be mapped so."""
        ...
