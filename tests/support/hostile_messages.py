"""Protobuf messages made to do harm: any fields of any message, some of them with values at and beyond their bounds."""

import math
import struct
from collections.abc import Mapping
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

Strategy = st.SearchStrategy[Any]
Plausible = Mapping[str, Strategy]  # by "Message.field": values that are most likely taken

MAX_FIELDS = 4  # set at once in one message: with more, the first bad one hides the others
MAX_REPEATED = 3000
MAX_REPEATED_BYTES = 40_000
KIND = FieldDescriptor

TEXTS = st.one_of(
    st.sampled_from(
        ["", " ", "\0", "\n", "é", "世界", "\u202e", "\U0010ffff", "{{ 7*7 }}", "<eos>", "%s%n", "x" * 5000]
    ),
    st.text(max_size=20),
)
FLOATS = st.one_of(
    st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38, 1.0, -1.0]),
    st.floats(width=32),
)


def _integers(low: int, high: int) -> Strategy:
    edges = [value for value in (low, low + 1, -1, 0, 1, 2, 17, 259, 260, 1000, high - 1, high) if low <= value <= high]
    return st.one_of(st.sampled_from(edges), st.integers(low, high))


HOSTILE: dict[int, Strategy] = {
    KIND.TYPE_FLOAT: FLOATS,
    KIND.TYPE_DOUBLE: st.floats(),
    KIND.TYPE_INT32: _integers(-(2**31), 2**31 - 1),
    KIND.TYPE_UINT32: _integers(0, 2**32 - 1),
    KIND.TYPE_UINT64: _integers(0, 2**64 - 1),
    KIND.TYPE_INT64: _integers(-(2**63), 2**63 - 1),
    KIND.TYPE_ENUM: _integers(-(2**31), 2**31 - 1),
    KIND.TYPE_BOOL: st.booleans(),
    KIND.TYPE_STRING: TEXTS,
    KIND.TYPE_BYTES: st.binary(max_size=40),
}


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor, plausible: Plausible) -> Message:
    """Of that type, with any of its fields, and theirs, set or not."""
    message: Message = message_factory.GetMessageClass(descriptor)()
    if not descriptor.fields:
        return message
    chosen = draw(
        st.lists(st.sampled_from(list(descriptor.fields)), max_size=MAX_FIELDS, unique_by=lambda each: each.name)
    )
    for field in chosen:
        _set(message, field, draw(_values(field, plausible)))
    return message


def replaced(base: Message, changes: Message) -> Message:
    """`base` with those fields of `changes` that are set."""
    message = type(base)()
    message.CopyFrom(base)
    for field, _ in changes.ListFields():
        message.ClearField(field.name)
    message.MergeFrom(changes)
    return message


def _values(field: FieldDescriptor, plausible: Plausible) -> Strategy:
    """Of the whole field, in the form that the message's constructor takes."""
    likely = plausible.get(f"{field.containing_type.name}.{field.name}")
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        hostile: Strategy = st.dictionaries(HOSTILE[key.type], HOSTILE[value.type], max_size=4)
    elif field.is_repeated:
        one = _one(field, plausible)
        hostile = st.one_of(st.lists(one, max_size=4), one.map(_very_often))
    else:
        hostile = _one(field, plausible)
    return hostile if likely is None else st.one_of(likely, likely, hostile)


def _very_often(value: Any) -> list[Any]:
    num_bytes = value.ByteSize() if isinstance(value, Message) else len(str(value))
    return [value] * min(MAX_REPEATED, MAX_REPEATED_BYTES // (num_bytes + 1))


def _one(field: FieldDescriptor, plausible: Plausible) -> Strategy:
    return HOSTILE[field.type] if field.message_type is None else messages(field.message_type, plausible)


def _set(message: Message, field: FieldDescriptor, value: Any) -> None:
    message.MergeFrom(type(message)(**{field.name: value}))


@st.composite
def damaged(draw: st.DrawFn, contents: bytes, most: int = 3) -> bytes:
    """`contents` with a few bytes flipped, cut off, put in, taken out, doubled, or in another one's place."""
    changed = bytearray(contents)
    for _ in range(draw(st.integers(1, most))):
        _damage(draw, changed)
    return bytes(changed)


def _damage(draw: st.DrawFn, contents: bytearray) -> None:
    at = draw(st.integers(0, len(contents)))
    length = draw(st.one_of(st.integers(0, 16), st.integers(0, len(contents))))
    match draw(st.sampled_from(["flip", "cut", "insert", "delete", "double", "number"])):
        case "flip" if at < len(contents):
            contents[at] ^= 1 << draw(st.integers(0, 7))
        case "cut":
            del contents[at:]
        case "insert":
            contents[at:at] = draw(st.binary(max_size=16))
        case "delete":
            del contents[at : at + length]
        case "double":
            contents[at:at] = contents[at : at + length]
        case "number":
            number = draw(st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]))
            contents[at : at + 8] = struct.pack("<Q", number)
