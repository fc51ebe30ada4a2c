"""A plugin of pytest (``-p bench.gpu.outcomes --outcomes FILE --until S --later WORD``).

What each test came to is written at once, and no test begins that would hardly end by `S` of the machine's clock.
"""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.gpu.record import LEFT_OUT, NO_TIME, Value, write_json
from tandem.clock import Clock, MonotonicClock

REASON_CHARACTERS = 300


class Outcomes:
    """Counts what passed; keeps why others did not, and the figures that tests give by `record_property`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._passed = 0
        self._reasons: dict[str, dict[str, str]] = {"failed": {}, "skipped": {}}
        self._figures: dict[str, dict[str, Value]] = {}
        self._left_out: dict[str, str] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Of this process's own tests."""
        self._expect([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        """Of those that others run; each has the same."""
        self._expect(ids)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Of a test's setup, call and teardown; the first and the last are told of when they fail."""
        name, reason = _short(report.nodeid), reason_of(report.longrepr)
        if report.outcome == "passed":
            if report.when == "call":
                self._passed += 1
                self._left_out.pop(name, None)
                if report.user_properties:
                    self._figures[name] = dict(report.user_properties)  # type: ignore[arg-type]
        elif NO_TIME not in reason:
            self._reasons[report.outcome][name] = reason
            self._left_out.pop(name, None)
        self._write()

    def _expect(self, node_ids: Sequence[str]) -> None:
        self._left_out |= {_short(node_id): NO_TIME for node_id in node_ids}
        self._write()

    def _write(self) -> None:
        found: dict[str, Value] = {"passed": self._passed, **self._reasons, "figures": self._figures}
        write_json(self._path, found | ({LEFT_OUT: self._left_out} if self._left_out else {}))


class Deadline:
    """Skips what would hardly end in time: a test is taken to be as long as the mean of those before it."""

    def __init__(self, clock: Clock, until_s: float) -> None:
        self._clock, self._until_s = clock, until_s
        self._mean_s, self._count = 0.0, 0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        """See `pytest`."""
        started_s = self._clock.now()
        result = yield
        self._count += 1
        self._mean_s += (self._clock.now() - started_s - self._mean_s) / self._count
        return result

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        """See `pytest`."""
        if self._clock.now() + self._mean_s > self._until_s:
            pytest.skip(NO_TIME)


def reason_of(longrepr: Any) -> str:
    """One line: a skip is its file, line and reason; a failure has a message somewhere."""
    text = longrepr[2] if isinstance(longrepr, tuple) else getattr(longrepr, "reprcrash", longrepr)
    first_line: str = str(getattr(text, "message", text)).strip().partition("\n")[0]
    return first_line[:REASON_CHARACTERS]


def pytest_addoption(parser: pytest.Parser) -> None:
    """See `pytest`."""
    parser.addoption("--outcomes")
    parser.addoption("--until", type=float)
    parser.addoption("--later", default="")


def pytest_configure(config: pytest.Config) -> None:
    """See `pytest`. Of several processes the one that is told by the others writes."""
    config.pluginmanager.register(Deadline(MonotonicClock(), config.getoption("--until")))
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Outcomes(Path(config.getoption("--outcomes"))))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """See `pytest`."""
    later = config.getoption("--later")
    if later:
        items.sort(key=lambda item: later in item.nodeid)


def _short(node_id: str) -> str:
    return node_id.rpartition("/")[2]
