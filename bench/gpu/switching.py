"""Changes of decode's share while it steps, whatever the backend: in place, or by another process that takes over.

What a switch is follows from the backend's own answer. Applied: the process goes on with its next step.
RestartRequired: a process that was started with the named environment is made ready while the old one steps, and takes
over at the end of a step; sequences are not handed over, both decode equal ones.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, TypeAlias

from bench.gpu import decoder
from bench.gpu.partner import Partner
from bench.gpu.record import Value
from tandem.clock import Clock

PERCENTILES = (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
FEWEST_FOR_P99 = 100

StartDecoder: TypeAlias = Callable[[Mapping[str, str]], Partner]
"""A decode process with this in its environment, beside what all have."""


@dataclass(frozen=True, slots=True)
class Switch:
    """One change to `percent`. Times in seconds of the machine's clock, the same in every process."""

    percent: int
    wished_s: float
    last_end_s: float  # of the last step on the old share
    begin_s: float  # of the first step on the new one
    end_s: float
    steps_s: Sequence[float]  # from end to end, of the usual steps before it

    @property
    def gap_s(self) -> float:
        """From token to token across the switch."""
        return self.end_s - self.last_end_s

    @property
    def takes_effect_s(self) -> float:
        """From the wish, which comes while a step is under way, to the first step on the new share."""
        return self.begin_s - self.wished_s


@dataclass(slots=True)
class Decode:
    """Decode's share, from the process that measures; whose processes these are is the business of `start`."""

    start: StartDecoder
    clock: Clock
    _ready: dict[int, Partner] = field(default_factory=dict)  # by percent; one may be ready for several
    _serving: Partner | None = None
    _percent: int = 0
    _keeps: bool = True

    def stand_by(self, percent: int, partner: Partner) -> float:
        """Ready from its first step on that share on; that step's milliseconds. PartnerError."""
        partner.say(f"{decoder.WARM} {percent}")
        first_ms = float(partner.hear(decoder.WARMED).value)
        self._ready[percent] = partner
        return first_ms

    def begin(self, percent: int, *, keeps: bool = True) -> None:
        """Steps on that share, by whoever is ready for it, from now on. PartnerError.

        `keeps`: a process whose share is not wanted stands by and is taken again; else each is ended, those that stand
        by at once, and a switch that needs another process needs a new one.
        """
        self._percent, self._serving, self._keeps = percent, self._ready[percent], keeps
        if not keeps:
            self._end_all_but(self._serving)
        self._serving.say(f"{decoder.GO} {percent}")
        self._serving.hear(decoder.SWITCHED)

    def switch(self, percent: int) -> Switch:
        """Returns after the first step on that share. PartnerError."""
        assert self._serving is not None
        wished_s = self.clock.now()
        self._serving.say(f"{decoder.SHARE} {percent}")
        answer = self._serving.hear(decoder.SWITCHED, decoder.NEEDS)
        found = answer.value if answer.word == decoder.SWITCHED else self._replace(percent, answer.value)
        self._percent = percent
        return Switch(percent, wished_s, **found)

    def rest(self) -> None:
        """Ends the steps; who took them stands by. PartnerError."""
        if self._serving is not None:
            _retire(self._serving)
            self._serving = None

    def _replace(self, percent: int, environment: Mapping[str, str]) -> dict[str, Any]:
        """Another process serves; what `Switch` is made of."""
        assert self._serving is not None
        if percent not in self._ready:
            self.stand_by(percent, self.start(environment))
        last, self._serving = _retire(self._serving), self._ready[percent]
        self._serving.say(f"{decoder.GO} {percent}")
        first = self._serving.hear(decoder.SWITCHED).value
        if not self._keeps:
            self._end_all_but(self._serving)
        return {**first, **last}

    def _end_all_but(self, kept: Partner) -> None:
        for percent, partner in list(self._ready.items()):
            if partner is not kept:
                partner.end()
                del self._ready[percent]


def _retire(partner: Partner) -> dict[str, Any]:
    """The end of its last step, and its usual steps."""
    partner.say(decoder.RETIRE)
    retired: dict[str, Any] = partner.hear(decoder.RETIRED).value
    return retired


def switches_between(decode: Decode, percents: Sequence[int], may_go_on: Callable[[int], bool]) -> Iterator[Switch]:
    """From the first share to the next, and so on, as long as it `may_go_on` after so many. PartnerError."""
    done = 0
    while may_go_on(done):
        done += 1
        yield decode.switch(percents[done % len(percents)])


def figures(switches: Sequence[Switch], first_percent: int) -> dict[str, Value]:
    """The gap between tokens across a switch beyond a usual step's; what usual steps take; wish to first step.

    Decode began on `first_percent`.
    """
    usual_s = usual_by_percent(switches, first_percent)
    shortest_s = min(usual_s.values())
    stalls_s = [max(0.0, each.gap_s - usual_s.get(each.percent, shortest_s)) for each in switches]
    steps_s = [step_s for each in switches for step_s in each.steps_s]
    return {
        "switches": len(switches),
        "stall_us": _percentiles(stalls_s, 1e6),
        "step_us": _percentiles(steps_s, 1e6),
        "takes_effect_ms": _percentiles([each.takes_effect_s for each in switches], 1e3),
    }


def usual_by_percent(switches: Sequence[Switch], first_percent: int) -> dict[int, float]:
    """Median of the steps on each share that followed no switch."""
    steps_s: dict[int, list[float]] = {}
    for before, each in zip([first_percent, *(one.percent for one in switches)], switches, strict=False):
        steps_s.setdefault(before, []).extend(each.steps_s)
    return {percent: median(those) for percent, those in steps_s.items()}


def _percentiles(values: Sequence[float], scale: float) -> dict[str, float]:
    """Of fewer than a hundred the 99th would be the greatest."""
    ordered = sorted(values)
    named = [(name, at) for name, at in PERCENTILES if name != "p99" or len(ordered) >= FEWEST_FOR_P99]
    return {name: ordered[int(at * (len(ordered) - 1))] * scale for name, at in named}
