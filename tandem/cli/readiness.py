"""Waiting until all services serve: what is looked at, when it is given up, and what is shown meanwhile.

`judge` decides over what was seen; `wait_until_serving` looks, shows and sleeps.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tandem.cli import events, health
from tandem.cli.asking import ask_gateway
from tandem.cli.deployment import Deployment
from tandem.cli.health import Health
from tandem.cli.programs import GATEWAY, parse_program
from tandem.cli.supervision import ProcessView, Supervisor, log_path
from tandem.clock import Clock
from tandem.errors import DeadlineError, NotReadyError
from tandem.rpc.gateway_values import ServerStatus

MAX_DEATHS = 2
POLL_S = 0.25
MAX_NEWS_CHARS = 160


@dataclass(frozen=True, slots=True)
class ServiceView:
    """One service at one look."""

    health: Health
    process: ProcessView
    news: str  # its last log event

    def line(self) -> str:
        """What to say of it while it is waited for."""
        if self.health is Health.SERVING:
            return "serving"
        return self.news or self.process.state.lower()


@dataclass(slots=True)
class History:
    """The starts of each service seen since the wait began; each after the first is a death."""

    starts: dict[str, set[int]] = field(default_factory=dict)

    def record(self, views: Mapping[str, ServiceView]) -> None:
        """Remembers the start times of one look."""
        for service, view in views.items():
            if view.process.started_unix_s:
                self.starts.setdefault(service, set()).add(view.process.started_unix_s)

    def num_deaths(self, service: str) -> int:
        """How often the service has died and been started again."""
        return max(0, len(self.starts.get(service, ())) - 1)


def judge(views: Mapping[str, ServiceView], history: History) -> str | None:
    """The service that will not come up by waiting, or None. One that serves now is forgiven its deaths."""
    return next((service for service, view in views.items() if _hopeless(service, view, history)), None)


def _hopeless(service: str, view: ServiceView, history: History) -> bool:
    if view.health is Health.SERVING:
        return False
    return view.process.state == "FATAL" or history.num_deaths(service) >= MAX_DEATHS


class Display(Protocol):
    """Where the wait is shown."""

    def show(self, views: Mapping[str, ServiceView]) -> None:
        """Replaces what was shown."""
        ...


def wait_until_serving(
    look: Callable[[], Mapping[str, ServiceView]],
    last_words: Callable[[str], str],
    display: Display,
    *,
    clock: Clock,
    sleep: Callable[[float], None],
    timeout_s: float,
) -> None:
    """Returns when all serve at one look. NotReadyError, with its last words, when a service keeps dying or is late."""
    deadline_s = clock.now() + timeout_s
    history = History()
    while True:
        views = look()
        history.record(views)
        display.show(views)
        late = [service for service, view in views.items() if view.health is not Health.SERVING]
        if not late:
            return
        dying = judge(views, history)
        if dying is not None:
            raise NotReadyError(f"{dying} does not stay up: {last_words(dying)}")
        if clock.now() > deadline_s:
            raise NotReadyError(f"{late[0]} is not serving after {timeout_s:.0f} s: {last_words(late[0])}")
        sleep(POLL_S)


def look(deployment: Deployment, supervisor: Supervisor) -> dict[str, ServiceView]:
    """Every service now, by its program's name. NotReadyError when nothing runs."""
    processes = supervisor.processes()
    return {
        name: ServiceView(health.probe_program(deployment, parse_program(name)), process, _news(deployment, process))
        for name, process in sorted(processes.items())
    }


def look_with_replicas(deployment: Deployment, supervisor: Supervisor) -> dict[str, ServiceView]:
    """As `look`, but a gateway serves only when all replicas that were started with it do: one is enough for itself."""
    views = look(deployment, supervisor)
    num_replicas = len({parse_program(name).replica for name in views})
    if num_replicas > 1 and GATEWAY in views:
        views[GATEWAY] = with_replicas(views[GATEWAY], _asked(deployment), num_replicas)
    return views


def with_replicas(gateway: ServiceView, status: ServerStatus | None, num_replicas: int) -> ServiceView:
    """Not serving while it has fewer ready replicas than there are; `status` is None when it does not answer."""
    if gateway.health is not Health.SERVING:
        return gateway
    num_ready = sum(replica.is_ready for replica in status.replicas) if status else 0
    if num_ready >= num_replicas:
        return gateway
    return replace(gateway, health=Health.NOT_SERVING, news=f"has {num_ready} of {num_replicas} replicas")


def _asked(deployment: Deployment) -> ServerStatus | None:
    try:
        return ask_gateway(deployment.address(GATEWAY))
    except (NotReadyError, DeadlineError):
        return None


def last_words(deployment: Deployment, service: str) -> str:
    """The service's last error, and where the rest of its log is."""
    path = log_path(deployment.run_dir, service)
    event = events.last_error(path)
    return f"{event.reason() if event else 'it logged nothing'} (all of it in {path})"


def _news(deployment: Deployment, process: ProcessView) -> str:
    """What the process said last; what an earlier one said is no news."""
    event = events.last_event(log_path(deployment.run_dir, process.service))
    if event is None or event.is_before(process.started_unix_s):
        return ""
    return " ".join(event.brief().split())[:MAX_NEWS_CHARS]


@contextlib.contextmanager
def shown_on(console: Console) -> Iterator[Display]:
    """A table that is redrawn on a terminal and stays as last drawn; elsewhere a line for each change."""
    if not console.is_terminal:
        yield LineDisplay(console)
        return
    with Live(console=console, auto_refresh=False) as live:
        yield TableDisplay(live)


class LineDisplay:
    """Prints a service's line whenever it differs from the one before."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: dict[str, str] = {}

    def show(self, views: Mapping[str, ServiceView]) -> None:
        """Prints what has changed."""
        for service, view in views.items():
            if self._shown.get(service) != view.line():
                self._shown[service] = view.line()
                self._console.print(Text(f"{service:<10} {view.line()}"))


class TableDisplay:
    """One row a service, redrawn in place."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, views: Mapping[str, ServiceView]) -> None:
        """Draws all rows."""
        self._live.update(_table(views), refresh=True)


def _table(views: Mapping[str, ServiceView]) -> Table:
    table = Table.grid(padding=(0, 2))
    for service, view in views.items():
        serving = view.health is Health.SERVING
        mark = Text("✓", "green") if serving else Text("…", "yellow")
        line = Text(view.line(), "green" if serving else "dim", overflow="ellipsis", no_wrap=True)
        table.add_row(mark, service, line)
    return table
