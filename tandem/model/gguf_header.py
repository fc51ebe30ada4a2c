"""A GGUF file's header: metadata and the table of tensors, every read checked against the file's end. No torch here.

Source: the GGUF specification (ggml/docs/gguf.md), versions 2 and 3, little-endian. Numbers of types and block sizes
are the `gguf` package's. Its own reader makes one array view a vocabulary entry (2 s for 49,152 tokens) and does not
bound counts by the file's size, so a damaged count makes it run on; this one reads a string array in one pass.
"""

import math
import mmap
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gguf.constants import (
    GGML_QUANT_SIZES,
    GGUF_DEFAULT_ALIGNMENT,
    GGMLQuantizationType,
    GGUFValueType,
)

from tandem.errors import ModelFormatError, ModelNotFoundError, UnsupportedModelError

_T = TypeVar("_T")
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_MIN_ENTRY_BYTES = 12  # the shortest metadata entry or tensor record: a length and a type
_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """`shape` is outermost dimension first; `offset_bytes` counts from the file's start."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset_bytes: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What stands before the tensors' data."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_header(path: Path) -> GgufHeader:
    """ModelNotFoundError; ModelFormatError: not GGUF, cut short or damaged; UnsupportedModelError: another version."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ModelFormatError(f"{path}: the file is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(path, data)
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{path}: no such file") from error
    except OSError as error:
        raise ModelNotFoundError(f"{path}: cannot be read: {error.strerror}") from error


def _parse(path: Path, data: mmap.mmap) -> GgufHeader:
    cursor = _Cursor(path, data)
    _check_preamble(cursor)
    num_tensors, num_entries = cursor.scalar("Q"), cursor.scalar("Q")
    metadata = _unique(cursor, num_entries, "metadata entries", _entry)
    records = _unique(cursor, num_tensors, "tensors", _tensor_record)
    alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise cursor.damaged(f"general.alignment is {alignment!r}, not a power of two")
    start = -(-cursor.position // alignment) * alignment
    tensors = {name: _placed(cursor, record, start, alignment) for name, record in records.items()}
    return GgufHeader(path, metadata, tensors)


class _Cursor:
    """Reads forward through the file; the file's end is an error that says where."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.position = 0
        self._data = data

    @property
    def size(self) -> int:
        return len(self._data)

    def damaged(self, problem: str) -> ModelFormatError:
        return ModelFormatError(f"{self.path}: {problem}")

    def require(self, num_bytes: int, what: str) -> None:
        """Checked before anything of that size is read or made."""
        if num_bytes > self.size - self.position:
            raise self.damaged(f"truncated or damaged: {what} at byte {self.position} passes the end at {self.size}")

    def scalar(self, code: str) -> Any:
        return self.scalars(code, 1)[0]

    def scalars(self, code: str, count: int) -> tuple[Any, ...]:
        num_bytes = count * struct.calcsize(f"<{code}")
        self.require(num_bytes, f"{count} values")
        values = struct.unpack_from(f"<{count}{code}", self._data, self.position)
        self.position += num_bytes
        return values

    def raw(self, num_bytes: int, what: str) -> bytes:
        self.require(num_bytes, what)
        start, self.position = self.position, self.position + num_bytes
        return self._data[start : self.position]

    def string(self) -> str:
        start = self.position
        try:
            return self.raw(self.scalar("Q"), "a string").decode()
        except UnicodeDecodeError as error:
            raise self.damaged(f"damaged: the string at byte {start} is not UTF-8") from error

    def strings(self, count: int) -> list[str]:
        self.require(count * 8, f"a list of {count} strings")
        return [self.string() for _ in range(count)]


def _check_preamble(cursor: _Cursor) -> None:
    magic = cursor.raw(len(_MAGIC), "the magic number")
    if magic != _MAGIC:
        raise cursor.damaged(f"not a GGUF file: it begins with {magic!r}")
    version = cursor.scalar("I")
    if version not in _VERSIONS:
        kind = "big-endian" if version & 0xFFFF == 0 else f"version {version}"
        raise UnsupportedModelError(f"{cursor.path}: {kind} GGUF is not built; little-endian versions 2 and 3 are")


def _unique(cursor: _Cursor, count: int, what: str, read: Callable[[_Cursor], tuple[str, _T]]) -> dict[str, _T]:
    cursor.require(count * _MIN_ENTRY_BYTES, f"{count} {what}")
    found: dict[str, _T] = {}
    for _ in range(count):
        name, value = read(cursor)
        if name in found:
            raise cursor.damaged(f"damaged: {name!r} occurs twice")
        found[name] = value
    return found


def _entry(cursor: _Cursor) -> tuple[str, Any]:
    key = cursor.string()
    kind = _value_type(cursor, key)
    return key, _array(cursor, key) if kind is GGUFValueType.ARRAY else _value(cursor, kind)


def _value_type(cursor: _Cursor, key: str) -> GGUFValueType:
    number = cursor.scalar("I")
    try:
        return GGUFValueType(number)
    except ValueError as error:
        raise cursor.damaged(f"damaged: {key!r} has value type {number}, which does not exist") from error


def _value(cursor: _Cursor, kind: GGUFValueType) -> Any:
    return cursor.string() if kind is GGUFValueType.STRING else cursor.scalar(_SCALARS[kind])


def _array(cursor: _Cursor, key: str) -> list[Any]:
    kind = _value_type(cursor, key)
    count = cursor.scalar("Q")
    if kind is GGUFValueType.ARRAY:
        raise cursor.damaged(f"{key!r} is an array of arrays, which no known key is")
    if kind is GGUFValueType.STRING:
        return cursor.strings(count)
    return list(cursor.scalars(_SCALARS[kind], count))


@dataclass(frozen=True, slots=True)
class _TensorRecord:
    name: str
    dimensions: tuple[int, ...]  # innermost first
    kind: GGMLQuantizationType
    offset_bytes: int  # from the start of the data


def _tensor_record(cursor: _Cursor) -> tuple[str, _TensorRecord]:
    name = cursor.string()
    num_dimensions = cursor.scalar("I")
    if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
        raise cursor.damaged(f"damaged: tensor {name!r} has {num_dimensions} dimensions")
    dimensions = cursor.scalars("Q", num_dimensions)
    return name, _TensorRecord(name, dimensions, _tensor_type(cursor, name), cursor.scalar("Q"))


def _tensor_type(cursor: _Cursor, name: str) -> GGMLQuantizationType:
    number = cursor.scalar("I")
    try:
        return GGMLQuantizationType(number)
    except ValueError as error:
        raise UnsupportedModelError(f"{cursor.path}: tensor {name!r}: quantisation {number} is not known") from error


def _placed(cursor: _Cursor, record: _TensorRecord, start: int, alignment: int) -> GgufTensor:
    row_elements, row_bytes = GGML_QUANT_SIZES[record.kind]
    if min(record.dimensions) < 1 or record.dimensions[0] % row_elements or record.offset_bytes % alignment:
        raise cursor.damaged(
            f"damaged: tensor {record.name!r}: shape {record.dimensions}, offset {record.offset_bytes}"
        )
    num_bytes = math.prod(record.dimensions) // row_elements * row_bytes
    offset = start + record.offset_bytes
    if offset + num_bytes > cursor.size:
        raise cursor.damaged(
            f"truncated: tensor {record.name!r} ends at byte {offset + num_bytes}, the file at {cursor.size}"
        )
    return GgufTensor(record.name, record.kind, record.dimensions[::-1], offset, num_bytes)
