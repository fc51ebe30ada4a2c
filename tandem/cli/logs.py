"""`tandem logs`."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from tandem.cli.deployment import MAX_REPLICAS, Overrides, deployment_options, resolve
from tandem.cli.events import LogEvent, last_lines, parse_line
from tandem.cli.output import new_console
from tandem.cli.programs import Program, replica_dirs
from tandem.cli.supervision import log_path
from tandem.config.settings import SERVICES
from tandem.errors import NotReadyError

POLL_S = 0.25
_STYLES = {"warning": "yellow", "error": "red", "critical": "red", "debug": "dim"}


@click.command(epilog=f"SERVICE is one of {', '.join(sorted(SERVICES))}.")
@click.argument("service", type=click.Choice(sorted(SERVICES)), required=False, metavar="[SERVICE]")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is logged from now on; Ctrl-C ends it.")
@click.option(
    "-n",
    "--lines",
    "num_lines",
    type=click.IntRange(min=0),
    default=50,
    show_default=True,
    help="How many of the newest.",
)
@click.option("--replica", type=click.IntRange(0, MAX_REPLICAS - 1), help="Of `up --replicas`, from 0; default: all.")
@deployment_options
def logs(
    service: str | None,
    *,
    follow: bool,
    num_lines: int,
    replica: int | None,
    config_file: Path | None,
    run_dir: Path | None,
) -> None:
    """Show what SERVICE, or all of them, logged last."""
    deployment = resolve(Overrides(config_file, run_dir), os.environ)
    if not log_path(deployment.run_dir, "memd").parent.is_dir():
        raise NotReadyError(f"nothing has run in {deployment.run_dir}")
    services = [service] if service else sorted(SERVICES)
    replicas = replica_dirs(deployment.run_dir) if replica is None else (replica,)
    names = [Program(each, number).name for each in services for number in replicas]
    followers = [Follower(name, log_path(deployment.run_dir, name)) for name in names]
    console = new_console()
    for name, event in recent(followers, num_lines):
        _print(console, name, event)
    with contextlib.suppress(KeyboardInterrupt):
        while follow:
            for follower in followers:
                for line in follower.new_lines():
                    _print(console, follower.service, parse_line(line))
            time.sleep(POLL_S)


@dataclass(slots=True)
class Follower:
    """Reads what is added to a log file, also after it was rotated away or emptied."""

    service: str
    path: Path
    inode: int = 0
    offset: int = 0
    partial: str = ""

    def __post_init__(self) -> None:
        """Starts at the file's present end."""
        if self.path.exists():
            status = self.path.stat()
            self.inode, self.offset = status.st_ino, status.st_size

    def new_lines(self) -> Iterator[str]:
        """Whole lines added since the last call."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino != self.inode or status.st_size < self.offset:
                self.inode, self.offset = status.st_ino, 0
            file.seek(self.offset)
            added = file.read()
        self.offset += len(added)
        *whole, self.partial = (self.partial + added.decode(errors="replace")).split("\n")
        yield from whole


def recent(followers: Sequence[Follower], num_lines: int) -> list[tuple[str, LogEvent]]:
    """The last events over all the logs, oldest first; a line without a timestamp stays after the one before it."""
    dated: list[tuple[str, str, LogEvent]] = []
    for follower in followers:
        timestamp = ""
        for line in last_lines(follower.path, num_lines) if num_lines else []:
            event = parse_line(line)
            timestamp = event.timestamp or timestamp
            dated.append((timestamp, follower.service, event))
    dated.sort(key=lambda entry: entry[0])
    return [(service, event) for _, service, event in dated[-num_lines:]]


def _print(console: Console, service: str, event: LogEvent) -> None:
    time_of_day = event.timestamp[11:23]
    line = Text.assemble((f"{time_of_day:<12} ", "dim"), (f"{service:<10} ", "cyan"))
    line.append(event.summary(), _STYLES.get(event.level, ""))
    console.print(line)
