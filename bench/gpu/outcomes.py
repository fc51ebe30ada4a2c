"""A plugin of pytest (``-p bench.gpu.outcomes --outcomes FILE``): what each test came to, written at once."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.gpu.record import Value, write_json

if TYPE_CHECKING:
    import pytest

REASON_CHARACTERS = 300


class Outcomes:
    """Counts what passed; keeps why others did not, and the figures that tests give by `record_property`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._passed = 0
        self._reasons: dict[str, dict[str, str]] = {"failed": {}, "skipped": {}}
        self._figures: dict[str, dict[str, Value]] = {}

    def pytest_runtest_logreport(self, report: "pytest.TestReport") -> None:
        """Of a test's setup, call and teardown; the first and the last are told of when they fail."""
        name = report.nodeid.rpartition("/")[2]
        if report.outcome != "passed":
            self._reasons[report.outcome][name] = reason_of(report.longrepr)
        elif report.when == "call":
            self._passed += 1
            if report.user_properties:
                self._figures[name] = dict(report.user_properties)  # type: ignore[arg-type]
        write_json(self._path, {"passed": self._passed, **self._reasons, "figures": self._figures})


def reason_of(longrepr: Any) -> str:
    """One line: a skip is its file, line and reason; a failure has a message somewhere."""
    text = longrepr[2] if isinstance(longrepr, tuple) else getattr(longrepr, "reprcrash", longrepr)
    first_line: str = str(getattr(text, "message", text)).strip().partition("\n")[0]
    return first_line[:REASON_CHARACTERS]


def pytest_addoption(parser: "pytest.Parser") -> None:
    """See `pytest`."""
    parser.addoption("--outcomes", type=Path)


def pytest_configure(config: "pytest.Config") -> None:
    """See `pytest`. Of several processes the one that is told by the others writes."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Outcomes(config.getoption("--outcomes")))
