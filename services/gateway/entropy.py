"""Random values for leases, seeds and names: the system's, of which a request takes three."""

import os
from collections.abc import Callable

DRAWN_BYTES = 4096  # at a time: a system call for each value costs more than the rest of it


class Entropy:
    """Bytes that are handed out once each. Of one process: one that forks would hand them out twice."""

    def __init__(self, draw: Callable[[int], bytes] = os.urandom) -> None:
        """`draw` brings so many new bytes."""
        self._draw = draw
        self._bytes = b""
        self._num_taken = 0

    def take(self, num_bytes: int) -> bytes:
        """At most `DRAWN_BYTES`."""
        end = self._num_taken + num_bytes
        if end > len(self._bytes):
            self._bytes, end = self._draw(DRAWN_BYTES), num_bytes
        taken = self._bytes[end - num_bytes : end]
        self._num_taken = end
        return taken

    def number(self, num_bits: int) -> int:
        """Of so many bits."""
        num_bytes = -(-num_bits // 8)
        return int.from_bytes(self.take(num_bytes)) >> (8 * num_bytes - num_bits)
