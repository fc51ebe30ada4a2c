"""Reading the services' logs: one JSON object a line, or whatever a dying interpreter wrote."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

TAIL_BYTES = 256 << 10
NUM_LINES_SEARCHED = 50
_OWN_FIELDS = frozenset({"timestamp", "level", "service", "event"})
_ERROR_LEVELS = frozenset({"error", "critical"})


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One line of a log. A line that is no event has only `name`: the line itself."""

    name: str
    level: str = ""
    timestamp: str = ""
    fields: Mapping[str, object] = field(default_factory=dict)

    def is_before(self, unix_s: float) -> bool:
        """Whether it is older; False where no time is known."""
        try:
            return datetime.fromisoformat(self.timestamp).timestamp() < unix_s
        except ValueError:
            return False

    def summary(self) -> str:
        """The event and its fields, on one line."""
        return " ".join([self.name, *(f"{key}={_shown(value)}" for key, value in self.fields.items())])

    def reason(self) -> str:
        """Why a service ended: the text of the error that it reported, else the whole event."""
        return str(self.fields["message"]) if "message" in self.fields else self.summary()

    def brief(self) -> str:
        """The same without fields that hold more than one value."""
        flat = {key: value for key, value in self.fields.items() if not isinstance(value, dict | list)}
        return LogEvent(self.name, fields=flat).summary()


def parse_line(line: str) -> LogEvent:
    """The event of a line, or the line as an event without fields."""
    try:
        record = json.loads(line)
    except ValueError:
        return LogEvent(line.strip())
    if not isinstance(record, dict) or "event" not in record:
        return LogEvent(line.strip())
    fields = {key: value for key, value in record.items() if key not in _OWN_FIELDS}
    return LogEvent(str(record["event"]), str(record.get("level", "")), str(record.get("timestamp", "")), fields)


def last_lines(path: Path, num_lines: int) -> list[str]:
    """The file's last lines, found in its last `TAIL_BYTES`; none when there is no file."""
    try:
        with path.open("rb") as file:
            size_bytes = file.seek(0, 2)
            file.seek(max(0, size_bytes - TAIL_BYTES))
            tail = file.read()
    except FileNotFoundError:
        return []
    lines = tail.decode(errors="replace").splitlines()
    whole = lines[1:] if size_bytes > TAIL_BYTES else lines
    return whole[-num_lines:]


def last_event(path: Path) -> LogEvent | None:
    """What the service said last."""
    lines = last_lines(path, 1)
    return parse_line(lines[0]) if lines else None


def last_error(path: Path) -> LogEvent | None:
    """The last event of level error, else the last line that is not blank."""
    events = [parse_line(line) for line in last_lines(path, NUM_LINES_SEARCHED) if line.strip()]
    return next((event for event in reversed(events) if event.level in _ERROR_LEVELS), _last(events))


def _last(events: Iterable[LogEvent]) -> LogEvent | None:
    return next(iter(reversed(list(events))), None)


def _shown(value: object) -> str:
    return value if isinstance(value, str) and " " not in value else json.dumps(value, ensure_ascii=False)
