"""A program of ours that looks at the device in a process of its own, says when it is ready, and answers in JSON."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, Self

from tandem.errors import DeviceError


class Probe:
    """Running; killed at the end of its context, when it waits or has ended."""

    def __init__(
        self, name: str, command: Sequence[str], environ: Mapping[str, str], pass_fds: Sequence[int] = ()
    ) -> None:
        """`name`: what errors call it."""
        self._name = name
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and modules
            command, env=dict(environ), pass_fds=pass_fds, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def wait_for(self, word: str) -> None:
        """Until it has said so; what is logged before is passed over. DeviceError: it ended, with what it said."""
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line == f"{word}\n":
                return
        raise self._failure()

    def release(self) -> None:
        """Lets it go on."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Waits for its end. DeviceError as of `wait_for`."""
        assert self._process.stdout is not None
        try:
            answer: dict[str, Any] = json.loads(self._process.stdout.read())
        except ValueError as error:
            raise self._failure() from error
        return answer

    def _failure(self) -> DeviceError:
        self._process.kill()
        _, said = self._process.communicate()
        words = said.strip().splitlines()
        return DeviceError(f"the {self._name} failed: {words[-1] if words else f'status {self._process.returncode}'}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self._process.kill()
        self._process.communicate()
