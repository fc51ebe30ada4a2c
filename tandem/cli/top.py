"""`tandem top`: the deployment over the last minutes."""

import contextlib
import math
import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from tandem.cli.deployment import Overrides, deployment_options, replica_option, resolve
from tandem.cli.output import new_console
from tandem.cli.top_frame import Board, Size
from tandem.cli.top_sources import Snapshot, ask_all
from tandem.clock import Clock, MonotonicClock
from tandem.config.local_replicas import replica_dir
from tandem.errors import NotReadyError


def _finite(context: click.Context, option: click.Parameter, value: float) -> float:
    if not math.isfinite(value):
        raise click.BadParameter(f"{value} is no number of seconds.", context, option)
    return value


@click.command()
@click.option("--once", is_flag=True, help="Print one frame and end.")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(min=0.1),
    callback=_finite,
    default=1.0,
    show_default=True,
    help="Seconds between two frames.",
)
@replica_option
@deployment_options
def top(*, once: bool, interval_s: float, replica: int, config_file: Path | None, run_dir: Path | None) -> None:
    """Watch the deployment on one screen until Ctrl-C.

    Split, latencies, queue, KV cache and decisions.
    """
    deployment = resolve(Overrides(config_file, run_dir), os.environ)
    board = Board(str(replica_dir(deployment.run_dir, replica)))
    watch = Watch(board, lambda: ask_all(deployment, replica), MonotonicClock(), new_console())
    if once:
        watch.once()
        return
    with contextlib.suppress(KeyboardInterrupt):
        watch.run(interval_s, time.sleep)


class Watch:
    """Asks, and shows what it has seen so far."""

    def __init__(self, board: Board, ask: Callable[[], Snapshot], clock: Clock, console: Console) -> None:
        self._board = board
        self._ask = ask
        self._clock = clock
        self._console = console

    def once(self) -> None:
        """One frame. NotReadyError when nobody answers."""
        snapshot = self._ask()
        if snapshot.is_empty:
            raise NotReadyError("nobody answers; `tandem up` starts the services")
        self._print(snapshot)

    def run(self, interval_s: float, sleep: Callable[[float], None]) -> None:
        """Frame after frame: in place on a terminal, elsewhere one below the other. Until `sleep` raises."""
        if not self._console.is_terminal:
            while True:
                self._print(self._ask())
                sleep(interval_s)
        with Live(console=self._console, auto_refresh=False, screen=True) as live:
            while True:
                self._board.take(self._ask(), self._clock.now())
                live.update(self._frame(), refresh=True)
                sleep(interval_s)

    def _print(self, snapshot: Snapshot) -> None:
        self._board.take(snapshot, self._clock.now())
        self._console.print(self._frame())

    def _frame(self) -> Text:
        size = Size(self._console.width, self._console.height)
        return self._board.frame(size, datetime.now().astimezone().strftime("%H:%M:%S"))
