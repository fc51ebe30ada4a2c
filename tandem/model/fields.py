"""Typed access to what a model's file says about itself: a GGUF's metadata or a JSON file. No torch here."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem.errors import ModelFormatError, ModelNotFoundError

_MOST = sys.float_info.max


@dataclass(frozen=True, slots=True)
class Fields:
    """Every reader raises ModelFormatError, with file and key, when a value is missing or of another type.

    A value of None (JSON's null) counts as missing; `default` stands for a missing value.
    """

    origin: str
    values: Mapping[str, Any]

    def has(self, key: str) -> bool:
        """Whether there is a value."""
        return self.values.get(key) is not None

    def integer(self, key: str, default: int | None = None) -> int:
        """An int; a bool is none."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(key, "an integer")
        return value

    def optional_integer(self, key: str) -> int | None:
        """An int, or None when it is missing."""
        return self.integer(key) if self.has(key) else None

    def number(self, key: str, default: float | None = None) -> float:
        """A finite int or float."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _MOST:
            raise self.wrong(key, "a finite number")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """A bool."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A str."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def optional_text(self, key: str) -> str | None:
        """A str, or None when it is missing."""
        return self.text(key) if self.has(key) else None

    def texts(self, key: str) -> list[str]:
        """A list of str."""
        return self._list(key, str, "a list of strings")

    def integers(self, key: str) -> list[int]:
        """A list of int."""
        return self._list(key, int, "a list of integers")

    def section(self, key: str) -> "Fields":
        """A JSON object; without fields when it is missing."""
        value = self._value(key, {})
        if not isinstance(value, Mapping):
            raise self.wrong(key, "an object")
        return Fields(f"{self.origin}: {key}", value)

    def wrong(self, key: str, wanted: str) -> ModelFormatError:
        """The error that `key` is not what it should be."""
        return ModelFormatError(f"{self.origin}: {key} is {_shown(self.values.get(key))}, not {wanted}")

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is None:
            raise ModelFormatError(f"{self.origin}: {key} is missing")
        return default

    def _list(self, key: str, kind: type, wanted: str) -> list[Any]:
        value = self._value(key, None)
        if not isinstance(value, list) or any(type(item) is not kind for item in value):
            raise self.wrong(key, wanted)
        return value


def read_json(path: Path) -> Fields:
    """A JSON object's file. ModelNotFoundError, ModelFormatError."""
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{path}: no such file") from error
    except OSError as error:
        raise ModelNotFoundError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ModelFormatError(f"{path}: not a JSON object")
    return Fields(str(path), values)


def read_optional_json(path: Path) -> Fields:
    """As `read_json`; without fields when there is no file."""
    return read_json(path) if path.exists() else Fields(str(path), {})


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
