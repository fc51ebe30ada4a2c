"""The simulated machines: what was measured on a CPU, and what an H200 may plausibly do."""

import math
from dataclasses import dataclass, replace

from bench.micro.table import StepShape, StepTime
from bench.simulate.pace import CadenceSteps
from bench.simulate.step_times import WHOLE_PERCENT, Contention, DeviceTable, table_of
from tandem.device.cpu.cadence import SPLITS as CADENCE_SPLITS
from tandem.device.cuda.sm_split import SmGroups, splits_of
from tandem.errors import ConfigError
from tandem.types import Phase, Split


@dataclass(frozen=True, slots=True)
class Delays:
    """What lies between steps. Below 0, where it may be: steps are so much shorter than the table says."""

    between_steps_ms: float  # may be below 0
    handover_ms: float  # from a prompt's last step to its first token
    join_ms: float  # from there until decode has the sequence
    taken_ms: float = 0.0  # from prefill's step, by what the services do with a decode step's tokens; may be below 0


@dataclass(frozen=True, slots=True)
class Several:
    """Delays with so many sequences in decode's step; with other numbers on the line from one through these."""

    num_sequences: int
    between_steps_ms: float  # while prefill has nothing to do
    beside: Delays


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """As the services are configured; times as of `Delays`."""

    max_sequences: int
    max_running: int  # sequences that the gateway has in the phases
    chunk_tokens: int  # of a prefill step, and of a colocated one
    block_size: int
    num_blocks: int
    num_reserve_blocks: int  # kept from prefill
    between_steps_ms: float
    handover_ms: float
    join_ms: float = 0.0
    beside: Delays | None = None  # None: nothing takes longer while the other phase is at work
    several: Several | None = None  # None: nothing takes longer with more sequences

    @property
    def alone(self) -> Delays:
        """While the other phase has nothing to do."""
        return Delays(self.between_steps_ms, self.handover_ms, self.join_ms)

    def delays(self, is_beside: bool, num_sequences: int) -> Delays:
        """`is_beside`: the other phase is at work; `num_sequences` >= 1 of decode's step."""
        one = self.beside if is_beside and self.beside is not None else self.alone
        if self.several is None:
            return one
        several = self.several.beside if is_beside else replace(one, between_steps_ms=self.several.between_steps_ms)
        return _on_line(one, several, (num_sequences - 1) / (self.several.num_sequences - 1))


def _on_line(start: Delays, end: Delays, part: float) -> Delays:
    def at(start_ms: float, end_ms: float) -> float:
        return start_ms + (end_ms - start_ms) * part

    return Delays(
        between_steps_ms=at(start.between_steps_ms, end.between_steps_ms),
        handover_ms=max(0.0, at(start.handover_ms, end.handover_ms)),
        join_ms=max(0.0, at(start.join_ms, end.join_ms)),
        taken_ms=at(start.taken_ms, end.taken_ms),
    )


@dataclass(frozen=True, slots=True)
class SwitchCost:
    """How long after a decision a share can change, and for how long the phase then stands."""

    delay_s: float
    stall_ms: float


@dataclass(frozen=True, slots=True)
class System:
    """Everything about the machine that is not policy."""

    table: DeviceTable
    contention: Contention
    limits: EngineLimits
    switch: SwitchCost
    backend: str  # that the planner is told of
    splits: tuple[Split, ...]
    length_scale: float  # of loads' prompts and answers: what suits so fast a machine
    cadence: CadenceSteps | None = None  # None: each phase has its share whatever the other does


# SmolLM2-135M in bfloat16 with the native kernels on two Zen 5 cores, as docs/benchmarks.md has it: milliseconds with
# one thread (50 %) and with both (100 %). Whole decode steps without attention by sequences, prefill steps without
# attention by rows, and what attention adds for a key that a sequence's row reads.
_CPU_DECODE = {50: {1: 16.2, 8: 14.9, 16: 20.0, 32: 32.4}, 100: {1: 9.2, 8: 10.1, 16: 12.1, 32: 17.2}}
_CPU_PREFILL = {50: {1: 16.2, 32: 32.4, 64: 51.0, 512: 305.0}, 100: {1: 9.2, 32: 17.2, 64: 29.0, 512: 154.8}}
_CPU_KEY_MS = {50: 2.5e-3, 100: 1.2e-3}
_CPU_PAIR_MS = {50: 4.7e-4, 100: 1.8e-4}
_CPU_KV_BYTES, _CPU_BLOCK_BYTES = 1 << 30, 16 * 23040


def cpu_system() -> System:
    """The documented measurement; shares as `cpu-cadence` makes them.

    The default model has 30 layers; a step of up to 64 rows does not wait between them (`kernels.native.layers`).
    """
    return System(
        table=_documented_cpu(),
        contention=Contention(prefill_factor=1.07, decode_factor=1.03, noise=0.05, meeting_factor=1.26),
        limits=EngineLimits(
            max_sequences=32,
            max_running=48,
            chunk_tokens=512,
            block_size=16,
            num_blocks=_CPU_KV_BYTES // _CPU_BLOCK_BYTES,
            num_reserve_blocks=16,
            between_steps_ms=1.0,
            handover_ms=3.0,
        ),
        switch=SwitchCost(delay_s=0.05, stall_ms=5.0),
        backend="cpu-cadence",
        splits=CADENCE_SPLITS,
        length_scale=0.25,
        cadence=CadenceSteps(num_layers=30, short_rows=64),
    )


def _documented_cpu() -> DeviceTable:
    keys = (0.0, 1024.0, 8192.0)
    decode = [
        (Phase.DECODE, float(percent), float(batch), key, ms + batch * key * _CPU_KEY_MS[percent])
        for percent, by_batch in _CPU_DECODE.items()
        for batch, ms in by_batch.items()
        for key in keys
    ]
    prefill = [
        (Phase.PREFILL, float(percent), float(rows), key, ms + rows * (key + rows / 2) * _CPU_PAIR_MS[percent])
        for percent, by_rows in _CPU_PREFILL.items()
        for rows, ms in by_rows.items()
        for key in keys
    ]
    return table_of("SmolLM2-135M on two Zen 5 cores, measured", decode + prefill)


def measured_table(label: str, steps: tuple[StepTime, ...]) -> DeviceTable:
    """Threads become shares of the most that were measured. ConfigError: no steps of a phase, or of no time."""
    if {step.shape.phase for step in steps} != set(Phase):
        raise ConfigError("table", "steps: there are none of both phases; measure both")
    for place, step in enumerate(steps):
        if not 0.0 < step.median_ms < math.inf:
            raise ConfigError("table", f"steps.{place}.median_ms: {step.median_ms} is no time of a step; measure again")
    most = max(step.shape.num_threads for step in steps)
    entries = [_entry(step.shape, most, step.median_ms) for step in steps]
    lone_rows = [
        (Phase.PREFILL, percent, 1.0, keys, ms)  # the shortest chunk there can be is one row
        for phase, percent, rows, keys, ms in entries
        if phase is Phase.DECODE and rows == 1.0
    ]
    return table_of(label, entries + lone_rows)


def _entry(shape: StepShape, most_threads: int, ms: float) -> tuple[Phase, float, float, float, float]:
    percent = WHOLE_PERCENT * shape.num_threads / most_threads
    if shape.phase is Phase.DECODE:
        return Phase.DECODE, percent, float(shape.num_sequences), float(shape.num_context_tokens), ms
    before = shape.num_context_tokens - shape.num_new_tokens
    return Phase.PREFILL, percent, float(shape.num_new_tokens), float(before), ms


# Nothing here was measured by us: an 8B model in bfloat16 against an H200's data sheet, at the fractions of its peaks
# that good kernels reach; decode's loss of bandwidth with fewer SMs is a published one (1.33, 1.09 and 1.06 at 32, 64,
# 96 of 132 SMs at batch 16).
_H200_SHARES = {12: 2.1, 24: 1.33, 36: 1.18, 48: 1.09, 61: 1.075, 73: 1.06, 85: 1.03, 100: 1.0}
_WEIGHT_BYTES = 16.0e9
_FLOPS_A_ROW = 15.0e9
_KEY_BYTES = 131072.0
_BYTES_PER_MS = 4.0e9  # of 4.8
_FLOPS_PER_MS = 0.55e12  # of 0.989
_LAUNCH_MS = 1.0


def h200_system() -> System:
    """Plausible, not measured."""
    return System(
        table=table_of("8B model on an H200: plausible, not measured", _h200_entries()),
        contention=Contention(prefill_factor=1.05, decode_factor=1.12, noise=0.03),
        limits=EngineLimits(
            max_sequences=256,
            max_running=320,
            chunk_tokens=2048,
            block_size=16,
            num_blocks=int(90e9 / _KEY_BYTES / 16),
            num_reserve_blocks=64,
            between_steps_ms=0.3,
            handover_ms=1.0,
        ),
        switch=SwitchCost(delay_s=0.0, stall_ms=0.2),
        backend="mps-green",
        splits=splits_of(SmGroups(num_sms=132, group_sms=8, num_groups=16)),  # as the driver cuts it
        length_scale=1.0,
    )


def _h200_entries() -> list[tuple[Phase, float, float, float, float]]:
    rows = (1, 16, 64, 128, 512, 1024, 2048)
    keys = (0, 1024, 8192)
    return [
        (
            phase,
            float(percent),
            float(row),
            float(key),
            _h200_ms(percent, row, key * (row if is_decode else 1), row * key),
        )
        for percent in _H200_SHARES
        for row in rows
        for key in keys
        for phase, is_decode in ((Phase.DECODE, True), (Phase.PREFILL, False))
    ]


def _h200_ms(percent: int, num_rows: int, num_read_keys: float, num_pairs: float) -> float:
    """A roofline: weights and keys read at the share's bandwidth, or rows multiplied at its SMs' rate."""
    bytes_per_ms = _BYTES_PER_MS / _H200_SHARES[percent]
    flops_per_ms = _FLOPS_PER_MS * percent / WHOLE_PERCENT
    weights_ms = max(_WEIGHT_BYTES / bytes_per_ms, num_rows * _FLOPS_A_ROW / flops_per_ms)
    attention_ms = max(num_read_keys * _KEY_BYTES / bytes_per_ms, num_pairs * 4.0 * 32 * 4096 / flops_per_ms)
    return _LAUNCH_MS + weights_ms + attention_ms
