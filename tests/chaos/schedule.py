"""What is done to the system, and when: pure data, drawn from a seed. The same plan is the same schedule."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

CLOSE = 0.3  # of the kills come so soon after another that this one's victim is still starting
SOONEST_S, LATEST_S = 0.05, 0.8  # of those, after the other
AGAIN = 0.15  # of those, the same service once more: supervisord delays such a one's next start by a second
REST_S = 6.0  # otherwise a service is left alone for so long, beyond the 5 s after which supervisord restarts at once
STOP_EVERY_S = 15.0
LINK_FAULT_EVERY_S = 4.0
BETWEEN_FAULT_EVERY_S = 2.0
FREEZE_EVERY_S = 20.0
FULL_LOGS_EVERY_S = 60.0
SHORT_STOP = (0.1, 0.6)  # of the hang time-out
LINK_FAULT_S = (0.2, 3.0)
FULL_LOGS_S = (3.0, 8.0)
LOGS = "logs"


class FaultKind(StrEnum):
    """What is done to a fault's target."""

    KILL = "kill"  # kill -9 of a service
    STOP = "stop"  # SIGSTOP of a service, and SIGCONT after `duration_s`
    HANG = "hang"  # SIGSTOP of a service until the watchdog has ended it
    CUT = "cut"  # of a link: its connections are reset, and none is accepted for `duration_s`
    STALL = "stall"  # of a link: no byte passes for `duration_s`
    THROTTLE = "throttle"  # of a link: few bytes a second pass for `duration_s`
    DELAY = "delay"  # of a link: what passes is late for `duration_s`
    FREEZE = "freeze"  # of a link: over the connections that it has nothing passes any more, nor their end
    FULL_LOGS = "full-logs"  # the disk of the logs has no room for `duration_s`


LINK_FAULTS = (FaultKind.CUT, FaultKind.STALL, FaultKind.THROTTLE)
BETWEEN_FAULTS = (*LINK_FAULTS, FaultKind.DELAY)


@dataclass(frozen=True, slots=True)
class Fault:
    """One of them, `at_s` after the schedule's start."""

    at_s: float
    kind: FaultKind
    target: str  # a service, a link, or `LOGS`
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a schedule is drawn from. Without `links`, `between` or `full_logs` there are no such faults."""

    seed: int
    duration_s: float
    num_kills: int
    hang_timeout_s: float
    services: tuple[str, ...]
    links: tuple[str, ...] = ()  # of clients to the gateway
    between: tuple[str, ...] = ()  # the services
    full_logs: bool = True


def draw_schedule(plan: Plan) -> tuple[Fault, ...]:
    """By time. Each kind has a generator of its own, so that more of one leaves the others as they are."""
    faults = [*_kills(plan), *_stops(plan), *_link_faults(plan), *_between(plan), *_freezes(plan), *_full_logs(plan)]
    return tuple(sorted(faults, key=lambda fault: (fault.at_s, fault.kind, fault.target)))


def _kills(plan: Plan) -> Iterator[Fault]:
    rng = random.Random(f"{plan.seed}/kills")
    history: list[Fault] = []
    spacing_s = plan.duration_s / max(1, plan.num_kills)
    for number in range(plan.num_kills):
        at_s = (number + 0.5 + rng.uniform(-0.25, 0.25)) * spacing_s
        kill = _close_kill(plan, history, spacing_s, rng) if history and rng.random() < CLOSE else None
        history.append(kill or _kill(at_s, _next_victim(plan.services, history, at_s, rng)))
        yield history[-1]


def _close_kill(plan: Plan, history: Sequence[Fault], spacing_s: float, rng: random.Random) -> Fault | None:
    """Soon after the last one; None when nobody has rested by then."""
    at_s = history[-1].at_s + rng.uniform(SOONEST_S, min(LATEST_S, spacing_s / 2))
    if rng.random() < AGAIN:
        return _kill(at_s, history[-1].target)
    return (
        _kill(at_s, _next_victim(plan.services, history, at_s, rng)) if _rested(plan.services, history, at_s) else None
    )


def _kill(at_s: float, service: str) -> Fault:
    return Fault(round(at_s, 3), FaultKind.KILL, service)


def _next_victim(services: Sequence[str], history: Sequence[Fault], at_s: float, rng: random.Random) -> str:
    """Of those that have rested, one of the least often killed; when none has, the one that has rested longest."""
    rested = _rested(services, history, at_s)
    if not rested:
        last_s = {fault.target: fault.at_s for fault in history}
        return min(services, key=lambda service: last_s[service])
    counts = Counter(fault.target for fault in history)
    fewest = min(counts[service] for service in rested)
    return rng.choice([service for service in rested if counts[service] == fewest])


def _rested(services: Sequence[str], history: Sequence[Fault], at_s: float) -> list[str]:
    last_s = {fault.target: fault.at_s for fault in history}
    return [service for service in services if at_s - last_s.get(service, -REST_S) >= REST_S]


def _stops(plan: Plan) -> Iterator[Fault]:
    """Delays that the watchdog must leave alone, and every other time a hang that it must end."""
    rng = random.Random(f"{plan.seed}/stops")
    for number, at_s in enumerate(_times(plan, STOP_EVERY_S, rng)):
        service = rng.choice(plan.services)
        if number % 2:
            yield Fault(at_s, FaultKind.HANG, service)
        else:
            duration_s = rng.uniform(*SHORT_STOP) * plan.hang_timeout_s
            yield Fault(at_s, FaultKind.STOP, service, round(duration_s, 3))


def _link_faults(plan: Plan) -> Iterator[Fault]:
    rng = random.Random(f"{plan.seed}/links")
    if plan.links:
        for number, at_s in enumerate(_times(plan, LINK_FAULT_EVERY_S, rng)):
            kind = LINK_FAULTS[number % len(LINK_FAULTS)]
            yield Fault(at_s, kind, rng.choice(plan.links), round(rng.uniform(*LINK_FAULT_S), 3))


def _between(plan: Plan) -> Iterator[Fault]:
    """Each link has all of them before one has any for the second time."""
    rng = random.Random(f"{plan.seed}/between")
    turn: list[tuple[FaultKind, str]] = []
    if plan.between:
        for at_s in _times(plan, BETWEEN_FAULT_EVERY_S, rng):
            if not turn:
                turn = [(kind, link) for kind in BETWEEN_FAULTS for link in plan.between]
                rng.shuffle(turn)
            kind, link = turn.pop()
            yield Fault(at_s, kind, link, round(rng.uniform(*LINK_FAULT_S), 3))


def _freezes(plan: Plan) -> Iterator[Fault]:
    """Not in a short schedule: only keepalive finds them, and that takes its time."""
    rng = random.Random(f"{plan.seed}/freezes")
    if plan.between and plan.duration_s >= FREEZE_EVERY_S:
        for number, at_s in enumerate(_times(plan, FREEZE_EVERY_S, rng)):
            yield Fault(at_s, FaultKind.FREEZE, plan.between[number % len(plan.between)])


def _full_logs(plan: Plan) -> Iterator[Fault]:
    rng = random.Random(f"{plan.seed}/logs")
    if plan.full_logs:
        for at_s in _times(plan, FULL_LOGS_EVERY_S, rng):
            yield Fault(at_s, FaultKind.FULL_LOGS, LOGS, round(rng.uniform(*FULL_LOGS_S), 3))


def _times(plan: Plan, every_s: float, rng: random.Random) -> Iterator[float]:
    """One in each stretch of about `every_s`; at least one in all."""
    num_stretches = max(1, round(plan.duration_s / every_s))
    stretch_s = plan.duration_s / num_stretches
    for number in range(num_stretches):
        yield round((number + rng.uniform(0.1, 0.9)) * stretch_s, 3)
