import io

import pytest
from rich.console import Console

from tandem.cli.health import Health
from tandem.cli.readiness import MAX_DEATHS, ServiceView, shown_on, wait_until_serving, with_replicas
from tandem.cli.supervision import ProcessView
from tandem.clock import ManualClock
from tandem.errors import NotReadyError
from tandem.rpc.gateway_values import ReplicaStatus, ServerStatus


def view(health: Health, state: str = "RUNNING", started: int = 100, news: str = "") -> ServiceView:
    return ServiceView(health, ProcessView("s", state, 7, started, 1), news)


class Silent:
    def show(self, views):
        pass


def wait(looks, timeout_s=60.0, display=None):
    """Waits over a prepared list of looks, the last of which repeats; returns how many were taken."""
    clock = ManualClock()
    taken = 0

    def look():
        nonlocal taken
        taken += 1
        return looks[min(taken, len(looks)) - 1]

    words = "{} said its last".format
    wait_until_serving(look, words, display or Silent(), clock=clock, sleep=clock.advance, timeout_s=timeout_s)
    return taken


def test_it_ends_at_the_first_look_at_which_all_serve():
    up, away = view(Health.SERVING), view(Health.UNREACHABLE)
    assert wait([{"a": up, "b": away}, {"a": away, "b": up}, {"a": up, "b": up}]) == 3


def test_a_service_that_keeps_dying_ends_the_wait_with_its_last_words():
    starts = [{"memd": view(Health.UNREACHABLE, "BACKOFF", started=100 + n)} for n in range(MAX_DEATHS + 1)]
    with pytest.raises(NotReadyError, match="memd does not stay up: memd said its last"):
        wait(starts)


def test_fewer_deaths_are_waited_through():
    starts = [{"memd": view(Health.UNREACHABLE, "BACKOFF", started=100 + n)} for n in range(MAX_DEATHS)]
    assert wait([*starts, {"memd": view(Health.SERVING)}]) == MAX_DEATHS + 1


def test_one_that_serves_is_forgiven_its_deaths():
    dying = [{"a": view(Health.SERVING, started=100 + n), "b": view(Health.NOT_SERVING)} for n in range(MAX_DEATHS + 3)]
    assert wait([*dying, {"a": view(Health.SERVING), "b": view(Health.SERVING)}]) == len(dying) + 1


def test_a_service_given_up_by_the_supervisor_ends_the_wait_at_once():
    with pytest.raises(NotReadyError, match="decode does not stay up"):
        wait([{"decode": view(Health.UNREACHABLE, "FATAL")}])


def test_the_wait_ends_at_its_time():
    with pytest.raises(NotReadyError, match="prefill is not serving after 9 s: prefill said its last"):
        wait([{"memd": view(Health.SERVING), "prefill": view(Health.NOT_SERVING)}], timeout_s=9.0)


def test_without_a_terminal_each_change_is_one_line():
    loading = {"memd": view(Health.NOT_SERVING, news="model.loading"), "gateway": view(Health.SERVING)}
    serving = {"memd": view(Health.SERVING), "gateway": view(Health.SERVING)}
    out = io.StringIO()
    with shown_on(Console(file=out, markup=False)) as display:
        wait([loading, loading, serving], display=display)
    assert out.getvalue().splitlines() == [
        "memd       model.loading",
        "gateway    serving",
        "memd       serving",
    ]


def test_on_a_terminal_the_rows_are_drawn_over():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=60)
    with shown_on(console) as display:
        display.show({"memd": view(Health.NOT_SERVING, news="model.loading [bold]")})
    assert "memd" in out.getvalue()
    assert "model.loading [bold]" in out.getvalue()


def status(*ready: bool) -> ServerStatus:
    replicas = tuple(ReplicaStatus(f"r{n}", "joined", is_ready, 0, 0, 0) for n, is_ready in enumerate(ready))
    return ServerStatus(0, 0, 0, 0, 0, True, True, True, 0.0, 0.0, replicas)


@pytest.mark.parametrize(("told", "line"), [((True, True), "serving"), ((False, True), "has 1 of 2 replicas")])
def test_a_gateway_is_waited_for_until_it_has_all_replicas(told, line):
    assert with_replicas(view(Health.SERVING), status(*told), 2).line() == line


def test_a_gateway_that_does_not_say_what_it_has_is_waited_for():
    assert with_replicas(view(Health.SERVING), None, 2).health is Health.NOT_SERVING


def test_a_gateway_that_does_not_serve_says_what_it_said():
    assert with_replicas(view(Health.NOT_SERVING, news="model.loading"), status(), 2).line() == "model.loading"
