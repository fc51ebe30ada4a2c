"""The prefill phase beside a section's decode: ``python -m bench.gpu.peer LOAD`` (`bench.gpu.partner.Load`).

For each line ``DECODE_PERCENT SECONDS`` it takes its side of the split, warms up, says ``begun``, computes until the
time is over or an empty line comes, and answers with prompt tokens a second.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping

from bench.gpu.load import partner_load
from bench.gpu.partner import READY, Load, Partner, is_told, load_of, partner, tell
from tandem.types import Phase

BEGUN, RATE = "begun", "rate"


class Peer:
    """A running peer, from the process that measures beside it."""

    def __init__(self, process: Partner) -> None:
        self._process = process

    def wait_ready(self) -> None:
        """Returns when it has made its model; to be called once, or not at all. PartnerError."""
        self._process.hear(READY)

    def end(self) -> None:
        """See `Partner`."""
        self._process.end()

    def begin(self, decode_percent: int, seconds: float) -> None:
        """Returns when it computes on its share. PartnerError."""
        self._process.say(f"{decode_percent} {seconds}")
        self._process.hear(BEGUN)

    def tokens_per_s(self) -> float:
        """Waits for its answer. PartnerError."""
        return float(self._process.hear(RATE).value)

    def stop(self) -> float:
        """Ends what it computes; its answer. PartnerError."""
        self._process.say("")
        return self.tokens_per_s()


@contextlib.contextmanager
def peer(load: Load, environ: Mapping[str, str] = os.environ) -> Iterator[Peer]:
    """Started, and ended on the way out."""
    with partner(__name__, load, environ) as process:
        yield Peer(process)


def main(text: str) -> None:
    """See the module."""
    load = partner_load(load_of(text), Phase.PREFILL)
    for words in map(str.split, iter(sys.stdin.readline, "")):
        if words:
            decode_percent, seconds = words
            load.use(int(decode_percent))
            load.warm_up_prefill()
            tell(BEGUN, decode_percent)
            tell(RATE, load.prefill_tokens_per_s(float(seconds), is_told))


if __name__ == "__main__":
    main(*sys.argv[1:])
