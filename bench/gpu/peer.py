"""The prefill phase beside a section's decode: ``python -m bench.gpu.peer [--dry] [--alone]``.

For each line ``DECODE_PERCENT SECONDS`` it takes its side of the split, warms up, says ``begun``, computes until the
time is over or an empty line comes, and answers with prompt tokens a second.
"""

import contextlib
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.gpu.bench import Bench
from tandem.clock import MonotonicClock
from tandem.types import Phase

DRY, ALONE = "--dry", "--alone"


class Peer:
    """A running peer, from the process that measures beside it."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def begin(self, decode_percent: int, seconds: float) -> None:
        """Returns when it computes on its share; the first time it makes its model before."""
        self._say(f"{decode_percent} {seconds}")
        self._expect("begun")

    def tokens_per_s(self) -> float:
        """Waits for its answer."""
        return float(self._expect("rate").split()[1])

    def stop(self) -> float:
        """Ends what it computes; its answer."""
        self._say("")
        return self.tokens_per_s()

    def _say(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def _expect(self, word: str) -> str:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith(word):
                return line
        raise RuntimeError(f"the peer ended with {self._process.wait()} before it said {word}")


@contextlib.contextmanager
def peer(*, is_dry: bool, is_alone: bool) -> Iterator[Peer]:
    """Started, and ended on the way out. `is_alone`: it never computes while this process does."""
    command = [sys.executable, "-m", __name__, *([DRY] if is_dry else []), *([ALONE] if is_alone else [])]
    with subprocess.Popen(  # noqa: S603 - this module
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        try:
            yield Peer(process)
        finally:
            process.kill()


def main(arguments: list[str]) -> None:
    """See the module."""
    from bench.gpu.load import PhaseLoad

    with tempfile.TemporaryDirectory() as folder:
        forever = float("inf")
        bench = Bench(Path(folder) / "peer.json", MonotonicClock(), forever, Path(folder), is_dry=DRY in arguments)
        load = PhaseLoad(bench, Phase.PREFILL, is_alone=ALONE in arguments)
        for words in map(str.split, sys.stdin):
            if words:
                decode_percent, seconds = words
                load.use(int(decode_percent))
                load.warm_up_prefill()
                _say("begun")
                _say(f"rate {load.prefill_tokens_per_s(float(seconds), _is_told)}")


def _is_told() -> bool:
    """Whether a line waits to be read."""
    return bool(select.select([sys.stdin], [], [], 0)[0])


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
