"""What every exported segment is on its owner's side: a descriptor with a name, a size, and whether it is sealed."""

import os

from tandem.device.memory import SegmentKind


class OwnedSegment:
    """An `ExportedSegment`; subclasses say what sealing and closing do beyond that."""

    def __init__(self, name: str, fd: int, size_bytes: int, kind: SegmentKind) -> None:
        self._name = name
        self._fd = fd
        self._size_bytes = size_bytes
        self._kind = kind
        self._sealed = False

    @property
    def name(self) -> str:
        """See `SegmentHandle`."""
        return self._name

    @property
    def size_bytes(self) -> int:
        """Of every mapping: of device memory a multiple of its granularity, which may be more than was asked for."""
        return self._size_bytes

    @property
    def fd(self) -> int:
        """Owned by this object until `close`."""
        return self._fd

    @property
    def kind(self) -> SegmentKind:
        """See `SegmentHandle`."""
        return self._kind

    @property
    def sealed(self) -> bool:
        """Whether `seal` was called."""
        return self._sealed

    def seal(self) -> None:
        """Told to whoever gets the descriptor from now on, whose importer then refuses a writable mapping."""
        self._sealed = True

    def close(self) -> None:
        """Closes the descriptor."""
        os.close(self._fd)
