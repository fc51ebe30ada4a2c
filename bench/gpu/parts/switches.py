"""What decode sees of a change of its share beside a prefill that never rests, with each backend."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bench.deployment.local import run_dir
from bench.gpu import decoder
from bench.gpu.bench import Bench
from bench.gpu.decoder import BATCH
from bench.gpu.load import CONTEXT, MODEL, split_of
from bench.gpu.partitions import GREEN, PERCENTAGE, TIMESHARE, BackendChoice
from bench.gpu.partner import Load, Partner, PartnerError, partner
from bench.gpu.peer import Peer, peer
from bench.gpu.record import NO_TIME
from bench.gpu.surroundings import NOWHERE
from bench.gpu.switching import Decode, Switch, figures, switches_between
from tandem.device.cuda.gpu import ENV_PERCENTAGE
from tandem.device.cuda.mps import ENV_PIPE_DIRECTORY
from tandem.types import Phase

PERCENTS = (50, 69)
PREFILL_PERCENT = split_of(max(PERCENTS)).percent(Phase.PREFILL)  # the whole time
NUM_LAYERS = 8  # of Llama-3-8B's 32, so that a thousand switches take seconds
ALONE, STANDING = f"{GREEN}_alone", f"{PERCENTAGE}_standing_by"
NO_MPS = "no MPS"
NEW_PROCESS_S = 9.0  # may well take until it steps
FOREVER_S = 1e6  # prefill computes until it is told


@dataclass(frozen=True, slots=True)
class Wanted:
    """So many switches, in no more than this part of the time that is left."""

    count: int
    part: float


WANTED: Mapping[str, Wanted] = {
    GREEN: Wanted(1000, 0.3),
    ALONE: Wanted(300, 0.1),
    TIMESHARE: Wanted(1000, 0.4),
    STANDING: Wanted(1000, 0.35),
}

BESIDES: Mapping[str, tuple[str, ...]] = {
    GREEN: (ALONE,),
    PERCENTAGE: (STANDING,),
}  # what a backend's pair is asked too


@dataclass(frozen=True, slots=True)
class Pair:
    """Both phases under one backend; `prefill`: None where decode computes alone."""

    decode: Decode
    prefill: Peer | None
    decoders: Mapping[int, Partner]  # by the share that they are started for
    processes: ExitStack


def switches(bench: Bench) -> None:
    """All processes are started at once; those that are not measured rest. New ones come last, while there is time."""
    bench.expect([*WANTED, PERCENTAGE])
    bench.record("load", {"model": MODEL, "layers": NUM_LAYERS, "batch": BATCH, "context": CONTEXT})
    has_mps = bench.is_dry or os.environ[ENV_PIPE_DIRECTORY] != NOWHERE
    names = [GREEN, TIMESHARE, *([PERCENTAGE] if has_mps else [])]
    for name in [] if has_mps else (GREEN, STANDING, PERCENTAGE):
        bench.leave_out(name, NO_MPS)
    with ExitStack() as opened:
        pairs = {name: opened.enter_context(_pair(bench, name, has_mps=has_mps)) for name in names}
        ready = [name for name in names if _went_well(_make_ready, bench, name, pairs[name])]
        for name in ready:  # all are: who makes its model would disturb who is measured
            _went_well(_of_one, bench, name, pairs[name])
            pairs[name].processes.close()


def _went_well(step: Callable[[Bench, str, Pair], None], bench: Bench, name: str, pair: Pair) -> bool:
    """One whose process ends does not end the others' measurement."""
    try:
        step(bench, name, pair)
    except PartnerError as error:
        bench.give_up((name, *BESIDES.get(name, ())), str(error))
        return False
    return True


def _make_ready(bench: Bench, name: str, pair: Pair) -> None:
    """Graphs of both shares are captured before the first switch."""
    if pair.prefill is not None:
        pair.prefill.wait_ready()
    first_ms = [pair.decode.stand_by(percent, each) for percent, each in pair.decoders.items()]
    bench.record(f"{name}_first_step_ms", first_ms)


def _of_one(bench: Bench, name: str, pair: Pair) -> None:
    """Beside prefill first; then what else is asked of the backend."""
    if pair.prefill is not None:
        pair.prefill.begin(max(PERCENTS), FOREVER_S)
        _between_ready_ones(bench, STANDING if name == PERCENTAGE else name, pair.decode)
        if name == PERCENTAGE:
            _by_new_processes(bench, pair.decode)
        bench.record(f"{name}_prefill_tokens_per_s", pair.prefill.stop())  # it was there to the end
    if name == GREEN:
        _between_ready_ones(bench, ALONE, pair.decode)


def _between_ready_ones(bench: Bench, name: str, decode: Decode) -> None:
    """In place, or between processes that stand by for each other."""
    count, until_s = bench.pick(WANTED[name].count, 4), bench.clock.now() + bench.left_s * WANTED[name].part
    decode.begin(PERCENTS[0])
    done = _measure(bench, name, decode, lambda done: done < count and bench.clock.now() < until_s)
    if done < count:
        bench.leave_out(f"{name}: {count - done} more", NO_TIME)


def _by_new_processes(bench: Bench, decode: Decode) -> None:
    """As the phases do it: a share needs a process, started when it is wanted. As many as there is time for."""
    decode.begin(PERCENTS[0], keeps=False)
    _measure(bench, PERCENTAGE, decode, lambda done: bench.has_time(NEW_PROCESS_S) and not (bench.is_dry and done))


def _measure(bench: Bench, name: str, decode: Decode, may_go_on: Callable[[int], bool]) -> int:
    """How often it switched. Found so far is what is recorded, also when a process ends in the middle."""
    found: list[Switch] = []
    try:
        for switch in switches_between(decode, PERCENTS, may_go_on):
            found.append(switch)
        decode.rest()
    finally:
        if found:
            bench.record(name, figures(found, PERCENTS[0]))
    return len(found)


@contextmanager
def _pair(bench: Bench, name: str, *, has_mps: bool) -> Iterator[Pair]:
    """Started, not waited for. Where there is no MPS decode has green contexts to itself."""
    outside_mps = {ENV_PIPE_DIRECTORY: NOWHERE} if name == TIMESHARE else {}
    is_alone = name == GREEN and not has_mps
    with run_dir() as folder, ExitStack() as opened:
        load = Load(BackendChoice(name, str(folder), is_alone=is_alone, is_dry=bench.is_dry), NUM_LAYERS)

        def start(environment: Mapping[str, str]) -> Partner:
            environ = {**os.environ, **outside_mps, **environment}
            return opened.enter_context(partner(decoder.__name__, load, environ))

        def share(percent: int) -> dict[str, str]:
            return {ENV_PERCENTAGE: str(percent)} if name == PERCENTAGE else {}

        prefill = None
        if not is_alone:
            environ = {**os.environ, **outside_mps, **share(PREFILL_PERCENT)}
            prefill = opened.enter_context(peer(load, environ))
        started = {percent: start(share(percent)) for percent in PERCENTS[: 2 if name == PERCENTAGE else 1]}
        decoders = {percent: started.get(percent, started[PERCENTS[0]]) for percent in PERCENTS}
        for end in (*(each.end for each in started.values()), *([prefill.end] if prefill else [])):
            opened.callback(end)  # all are told before anybody's end is waited for
        yield Pair(Decode(start, bench.clock), prefill, decoders, opened)
