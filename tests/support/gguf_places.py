"""Where a GGUF file's header has its numbers, by the specification (ggml/docs/gguf.md), for tests that falsify them."""

import struct
from collections.abc import Iterator

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_MANY = 8  # entries of an array of strings whose lengths count


def number_places(contents: bytes) -> list[tuple[int, int]]:
    """Offset and size in bytes of each count, length, type, dimension and offset, of the numbers among the values."""
    return list(_Walk(contents).header())


class _Walk:
    """Goes through a good file once."""

    def __init__(self, contents: bytes) -> None:
        self._contents = contents
        self._at = 4

    def header(self) -> Iterator[tuple[int, int]]:
        yield from self._number(4)
        num_tensors = self._peek(8)
        yield from self._number(8)
        num_entries = self._peek(8)
        yield from self._number(8)
        for _ in range(num_entries):
            yield from self._string()
            kind = self._peek(4)
            yield from self._number(4)
            yield from self._value(kind)
        for _ in range(num_tensors):
            yield from self._tensor()

    def _tensor(self) -> Iterator[tuple[int, int]]:
        yield from self._string()
        num_dimensions = self._peek(4)
        yield from self._number(4)
        for _ in range(num_dimensions):
            yield from self._number(8)
        yield from self._number(4)
        yield from self._number(8)

    def _value(self, kind: int) -> Iterator[tuple[int, int]]:
        if kind == _STRING:
            yield from self._string()
        elif kind == _ARRAY:
            yield from self._array()
        else:
            yield from self._number(_SIZES[kind])

    def _array(self) -> Iterator[tuple[int, int]]:
        kind, count = self._peek(4), struct.unpack_from("<Q", self._contents, self._at + 4)[0]
        yield from self._number(4)
        yield from self._number(8)
        for number in range(count):
            found = list(self._value(kind))
            if number < _MANY:
                yield from found

    def _string(self) -> Iterator[tuple[int, int]]:
        length = self._peek(8)
        yield from self._number(8)
        self._at += length

    def _number(self, size: int) -> Iterator[tuple[int, int]]:
        yield self._at, size
        self._at += size

    def _peek(self, size: int) -> int:
        return int.from_bytes(self._contents[self._at : self._at + size], "little")
