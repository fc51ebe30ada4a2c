"""The prefill phase beside a section's decode: ``python -m bench.gpu.peer [--dry]``.

Says ``ready``; for each line ``DECODE_PERCENT SECONDS`` it takes its side of the split, says ``begun``, and answers
with prompt tokens a second.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.gpu.bench import Bench
from tandem.types import Phase

DRY = "--dry"


class Peer:
    """A running peer, from the process that measures beside it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._expect("ready")

    def begin(self, decode_percent: int, seconds: float) -> None:
        """Returns when it has its share."""
        assert self._process.stdin
        self._process.stdin.write(f"{decode_percent} {seconds}\n")
        self._process.stdin.flush()
        self._expect("begun")

    def tokens_per_s(self) -> float:
        """Waits for its answer."""
        return float(self._expect("rate").split()[1])

    def _expect(self, word: str) -> str:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith(word):
                return line
        raise RuntimeError(f"the peer ended with {self._process.wait()} before it said {word}")


@contextlib.contextmanager
def peer(*, is_dry: bool) -> Iterator[Peer]:
    """Ended on the way out."""
    command = [sys.executable, "-m", __name__, *([DRY] if is_dry else [])]
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
        bench = Bench(Path(folder) / "peer.json", is_dry=DRY in arguments)
        load = PhaseLoad(bench, Phase.PREFILL, is_alone=False)
        _say("ready")
        for line in sys.stdin:
            decode_percent, seconds = line.split()
            load.use(int(decode_percent))
            _say("begun")
            _say(f"rate {load.prefill_tokens_per_s(float(seconds))}")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
