"""How `tandem top` draws what it has seen: lines that fit a terminal, each fact with its curve."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.text import Text

from tandem.cli.top_series import Cells, Series, bar
from tandem.cli.top_sources import ControllerView, Curve, Snapshot, attained_percent, leased_percent, points
from tandem.kv.store import StorageStatistics
from tandem.partition.observations import LatencyStatistics
from tandem.partition.status import ControllerStatus, DecisionRecord, PhaseStatus
from tandem.rpc.gateway_values import ServerStatus
from tandem.types import Phase

SPAN_S = 300.0
NAME_WIDTH, FACT_WIDTH = 10, 45
MOST_CELLS = 150
ENOUGH_PERCENT = 90.0  # of requests that meet their SLOs: what goodput is counted by
UNKNOWN = "-"
NANO = 1e9
AWAY, GOOD, BAD, DIM = "yellow", "green", "red", "dim"
_FULL = {Curve.PREFILL_PERCENT: 100.0, Curve.ATTAINED_PERCENT: 100.0, Curve.KV_PERCENT: 100.0}
_STEP_CURVES = {Phase.PREFILL: Curve.PREFILL_STEP_MS, Phase.DECODE: Curve.DECODE_STEP_MS}


@dataclass(frozen=True, slots=True)
class Size:
    """Of a terminal, in signs."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Row:
    """One fact, and what it was over time. `limit`: a curve above it is bad, below it for attainment."""

    name: str
    fact: Text
    curve: Curve | None = None
    limit: float = math.inf


class Board:
    """Everything seen so far."""

    def __init__(self, run_dir: str) -> None:
        self._run_dir = run_dir
        self._series = {curve: Series(SPAN_S) for curve in Curve}
        self._snapshot = Snapshot(None, None, None)
        self._history: tuple[DecisionRecord, ...] = ()
        self._now_s = 0.0

    def take(self, snapshot: Snapshot, now_s: float) -> None:
        """One look. What the controller had decided is still shown while it is away."""
        self._snapshot, self._now_s = snapshot, now_s
        if snapshot.controller is not None:
            self._history = snapshot.controller.history
        for curve, value in points(snapshot).items():
            self._series[curve].add(now_s, value)

    def frame(self, size: Size, time_of_day: str) -> Text:
        """No more than `size`."""
        lines = [self._title(size, time_of_day)]
        lines += [self._line(row, size.width) for row in rows(self._snapshot)]
        num_free = size.height - len(lines) - 2
        if self._history and num_free > 0:
            lines += [Text(), Text("decisions, newest first (UTC)", DIM)]
            lines += [_decision_line(record) for record in reversed(self._history[-num_free:])]
        for line in lines:
            line.truncate(size.width, overflow="ellipsis")
        return Text("\n", no_wrap=True).join(lines[: size.height])

    def _title(self, size: Size, time_of_day: str) -> Text:
        title = Text.assemble(("tandem top", "bold"), f"  {self._run_dir}")
        ending = f"{time_of_day}  curves: {SPAN_S / 60:.0f} min"
        gap = max(2, size.width - title.cell_len - len(ending))
        return title.append(" " * gap + ending, DIM)

    def _line(self, row: Row, width: int) -> Text:
        line = Text.assemble((f"{row.name:<{NAME_WIDTH}}", DIM), row.fact)
        num_cells = min(MOST_CELLS, width - NAME_WIDTH - FACT_WIDTH)
        if row.curve is None or num_cells <= 0:
            return line
        line.truncate(NAME_WIDTH + FACT_WIDTH - 1, overflow="ellipsis")
        line.pad_right(NAME_WIDTH + FACT_WIDTH - line.cell_len)
        return line.append(drawn(row, self._series[row.curve].cells(self._now_s, num_cells)))


def drawn(row: Row, cells: Cells) -> Text:
    """A curve from 0 to the highest value in it, or to 100 for what is a percentage."""
    assert row.curve is not None
    full = _FULL.get(row.curve) or max((value for value in cells if value is not None), default=0.0)
    curve = Text()
    for value in cells:
        curve.append(bar(value, full), _style(row, value))
    return curve


def rows(snapshot: Snapshot) -> Iterator[Row]:
    """All but the decisions."""
    yield from _controller_rows(snapshot.controller)
    yield from _gateway_rows(snapshot.gateway)
    yield _storage_row(snapshot.storage)
    for phase in Phase:
        yield from _phase_rows(phase, snapshot.controller)


def _controller_rows(view: ControllerView | None) -> Iterator[Row]:
    if view is None:
        yield Row("split", Text("the controller does not answer", AWAY), Curve.PREFILL_PERCENT)
        yield Row("TTFT", Text(UNKNOWN, DIM), Curve.TTFT_P90_MS)
        yield Row("TPOT", Text(UNKNOWN, DIM), Curve.TPOT_P90_MS)
        yield Row("in SLO", Text(UNKNOWN, DIM), Curve.ATTAINED_PERCENT)
        return
    status = view.status
    split, state = status.decision.split, " paused" if status.is_paused else ""
    shares = f"prefill {split.prefill_percent}, decode {split.decode_percent} %"
    yield Row("split", Text(f"{shares}  {status.planner}{state}"), Curve.PREFILL_PERCENT)
    yield _latency_row("TTFT", status.requests.ttft, status.slo.ttft_ms, Curve.TTFT_P90_MS)
    yield _latency_row("TPOT", status.requests.tpot, status.slo.tpot_ms, Curve.TPOT_P90_MS)
    yield _attainment_row(status)


def _latency_row(name: str, latency: LatencyStatistics, slo_ms: float, curve: Curve) -> Row:
    p90 = f"p90 {latency.p90_ms:7.1f}"
    fact = Text.assemble(f"p50 {latency.p50_ms:7.1f}  ", (p90, BAD if latency.p90_ms > slo_ms else GOOD))
    return Row(name, fact.append(f"  SLO {slo_ms:.0f} ms"), curve, slo_ms)


def _attainment_row(status: ControllerStatus) -> Row:
    percent = attained_percent(status)
    if percent is None:
        return Row("in SLO", Text("no requests yet", DIM), Curve.ATTAINED_PERCENT)
    fact = Text.assemble((f"{percent:.1f} %", BAD if percent < ENOUGH_PERCENT else GOOD))
    fact.append(f" of the newest {status.requests.num_in_window} requests")
    return Row("in SLO", fact, Curve.ATTAINED_PERCENT, ENOUGH_PERCENT)


def _gateway_rows(gateway: ServerStatus | None) -> Iterator[Row]:
    if gateway is None:
        yield Row("queue", Text("the gateway does not answer", AWAY), Curve.NUM_WAITING)
        yield Row("output", Text(UNKNOWN, DIM), Curve.TOKENS_PER_S)
        return
    running = f"{gateway.num_prefilling} in prefill · {gateway.num_decoding} in decode"
    yield Row("queue", Text(f"{gateway.num_waiting} waiting · {running}"), Curve.NUM_WAITING)
    rates = f"{gateway.tokens_per_s:.1f} tokens/s · {gateway.requests_per_s:.2f} requests/s"
    yield Row("output", Text(rates), Curve.TOKENS_PER_S)


def _storage_row(storage: StorageStatistics | None) -> Row:
    if storage is None:
        return Row("KV", Text("memd does not answer", AWAY), Curve.KV_PERCENT)
    others = {
        "cached": storage.num_cached_blocks,
        "spare": storage.num_spare_blocks,
        "free": storage.num_free_blocks,
    }
    rest = " ".join(f"{name} {100 * num / max(1, storage.num_blocks):.0f}" for name, num in others.items())
    return Row("KV", Text(f"leased {leased_percent(storage):.0f} {rest} % of {storage.num_blocks}"), Curve.KV_PERCENT)


def _phase_rows(phase: Phase, view: ControllerView | None) -> Iterator[Row]:
    curve = _STEP_CURVES[phase]
    status = PhaseStatus(phase) if view is None else view.phase(phase)
    if not status.connected:
        fact = Text(UNKNOWN, DIM) if view is None else Text("is not there, says the controller", AWAY)
        yield Row(phase, fact, curve)
        yield Row("", Text())
        return
    step = status.statistics.step
    steps = f"step p50 {step.p50_ms:.1f} p99 {step.p99_ms:.1f} ms · {status.statistics.tokens_per_s:.0f} tokens/s"
    yield Row(phase, Text(steps), curve)
    yield Row("", Text(status.applied_detail or "no share applied yet", DIM))


def _decision_line(record: DecisionRecord) -> Text:
    when = datetime.fromtimestamp(record.unix_ns / NANO, UTC).strftime("%H:%M:%S")
    split = f"{record.decision.split.prefill_percent},{record.decision.split.decode_percent}"
    line = Text.assemble((f"{when}  ", DIM), f"{record.decision.decision_id:>4}  {split:<7}  ")
    return line.append(f"{_outcome(record):<17}  ").append(record.decision.reason)


def _outcome(record: DecisionRecord) -> str:
    """Of the slowest phase; who needs a new process has answered when that has."""
    last = {each.phase: each for each in record.applied}
    if not last:
        return "not answered yet"
    if any(each.answer.restart_required for each in last.values()):
        return "new process comes"
    return f"after {max(each.after_ms for each in last.values()) / 1000:.2f} s"


def _style(row: Row, value: float | None) -> str:
    if value is None or math.isinf(row.limit):
        return ""
    is_bad = value < row.limit if row.curve is Curve.ATTAINED_PERCENT else value > row.limit
    return BAD if is_bad else GOOD
