"""What a phase's next process finds in its environment: how a share outlives the process that could not have it."""

import json
from collections.abc import Mapping
from pathlib import Path

import structlog

from tandem.types import Phase

_log = structlog.get_logger()


class StartEnvironment:
    """A file of the run directory, which is the user's own: written by the process before, read by the next."""

    def __init__(self, run_dir: Path, phase: Phase) -> None:
        self._path = run_dir / f"{phase}.start"

    def read(self) -> Mapping[str, str]:
        """Empty where nothing was left. What is no environment is passed over and told of."""
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            _log.warning("start_environment.unreadable", path=str(self._path), error=str(error))
            return {}
        if isinstance(found, dict) and all(isinstance(value, str) for value in found.values()):
            return found
        _log.warning("start_environment.unreadable", path=str(self._path), error="not a table of strings")
        return {}

    def write(self, environment: Mapping[str, str]) -> None:
        """For the next process; whole or not at all. OSError."""
        draft = self._path.with_name(self._path.name + ".new")
        draft.write_text(json.dumps(dict(environment)), encoding="utf-8")
        draft.replace(self._path)

    def forget(self) -> None:
        """The next process starts as configured."""
        self._path.unlink(missing_ok=True)
