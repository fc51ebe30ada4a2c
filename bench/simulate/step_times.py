"""How long the simulated device takes for a step: a table of measured steps, read between its entries. Pure.

Time at a share between two measured ones lies on the line that joins their speeds; below the least measured share speed
is proportional to it.
"""

import random
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tandem.types import Phase

WHOLE_PERCENT = 100.0


@dataclass(frozen=True, slots=True)
class StepContent:
    """What a step computes. Keys of prompts are those before the chunk, a mean over the rows."""

    num_prompt_rows: int = 0
    num_keys_before: float = 0.0
    num_decode_rows: int = 0
    num_decode_keys: int = 0  # summed over the sequences

    @property
    def num_rows(self) -> int:
        """Of the forward pass."""
        return self.num_prompt_rows + self.num_decode_rows


@dataclass(frozen=True, slots=True)
class Contention:
    """What a step takes longer while the other phase works on its own share, and how much steps vary by themselves.

    `meeting_factor`: a short step on all cores, on some of which the other phase computes, over one on half of them.
    `lone_prefill_factor`: a prompt's step in its service, the other phase at rest, over one of the model by itself.
    """

    prefill_factor: float
    decode_factor: float
    noise: float  # standard deviation of a step's logarithm
    meeting_factor: float = 1.0
    lone_prefill_factor: float = 1.0


class Grid:
    """Milliseconds over two axes, each ascending; linear between the entries and beyond the last ones."""

    def __init__(self, cells: Mapping[tuple[float, float], float]) -> None:
        """`cells` by (first, second); every first axis value has entries of its own along the second."""
        self._firsts = sorted({first for first, _ in cells})
        self._rows = [
            sorted((second, ms) for (other, second), ms in cells.items() if other == first) for first in self._firsts
        ]

    def at(self, first: float, second: float) -> float:
        """Never below a tenth of the least entry along the way."""
        if len(self._firsts) == 1:
            return _between(self._rows[0], second)
        above = min(max(bisect_right(self._firsts, first), 1), len(self._firsts) - 1)
        low, high = _between(self._rows[above - 1], second), _between(self._rows[above], second)
        part = (first - self._firsts[above - 1]) / (self._firsts[above] - self._firsts[above - 1])
        return max(low + (high - low) * part, min(low, high) * 0.1)


@dataclass(frozen=True, slots=True)
class DeviceTable:
    """Steps by share: decode over (sequences, keys of each), prefill over (rows, keys before them)."""

    label: str
    decode: Mapping[float, Grid]  # by percent
    prefill: Mapping[float, Grid]

    def ms(self, content: StepContent, percent: float) -> float:
        """Alone on the device. A step of both phases reads the weights once: decode adds its rows and its keys."""
        if not content.num_prompt_rows:
            return self._decode_ms(content, percent)
        prefill = _at_share(self.prefill, percent, content.num_rows, content.num_keys_before)
        return prefill + self._keys_ms(content, percent)

    def _decode_ms(self, content: StepContent, percent: float) -> float:
        keys = content.num_decode_keys / content.num_decode_rows
        return _at_share(self.decode, percent, content.num_decode_rows, keys)

    def _keys_ms(self, content: StepContent, percent: float) -> float:
        if not content.num_decode_rows:
            return 0.0
        without = _at_share(self.decode, percent, content.num_decode_rows, 1.0)
        return max(0.0, self._decode_ms(content, percent) - without)


class Device:
    """The table with what happens around it: contention, noise, shares that overlap."""

    def __init__(self, table: DeviceTable, contention: Contention, seed: int) -> None:
        self._table = table
        self._contention = contention
        self._random = random.Random(seed)  # noqa: S311 - noise, not secrets

    def step_ms(self, content: StepContent, percent: float, other_percent: float) -> float:
        """`other_percent`: what the other phase is working on now, 0 when it is at rest."""
        together = percent + other_percent
        effective = percent * min(1.0, WHOLE_PERCENT / together)
        factor = self._random.lognormvariate(0.0, self._contention.noise)
        if other_percent:
            factor *= self._contention.prefill_factor if content.num_prompt_rows else self._contention.decode_factor
        elif content.num_prompt_rows:
            factor *= self._contention.lone_prefill_factor
        return self._table.ms(content, effective) * factor

    def meeting_ms(self, content: StepContent) -> float:
        """On all cores, while the other phase computes on some of them."""
        half_ms = self._table.ms(content, WHOLE_PERCENT / 2) * self._contention.meeting_factor
        return half_ms * self._random.lognormvariate(0.0, self._contention.noise)


def table_of(label: str, entries: Sequence[tuple[Phase, float, float, float, float]]) -> DeviceTable:
    """From (phase, percent, first, second, milliseconds), as `DeviceTable` has its axes."""
    grids: dict[Phase, dict[float, dict[tuple[float, float], float]]] = {phase: {} for phase in Phase}
    for phase, percent, first, second, ms in entries:
        grids[phase].setdefault(percent, {})[first, second] = ms
    made = {phase: {percent: Grid(cells) for percent, cells in by.items()} for phase, by in grids.items()}
    return DeviceTable(label, made[Phase.DECODE], made[Phase.PREFILL])


def _at_share(grids: Mapping[float, Grid], percent: float, first: float, second: float) -> float:
    if percent in grids:
        return grids[percent].at(first, second)
    shares = sorted(grids)
    above = bisect_right(shares, percent)
    if above == 0:
        return grids[shares[0]].at(first, second) * shares[0] / percent
    if above == len(shares):
        return grids[shares[-1]].at(first, second)
    low, high = shares[above - 1], shares[above]
    slow, fast = 1.0 / grids[low].at(first, second), 1.0 / grids[high].at(first, second)
    return 1.0 / (slow + (fast - slow) * (percent - low) / (high - low))


def _between(row: Sequence[tuple[float, float]], at: float) -> float:
    if len(row) == 1:
        return row[0][1]
    above = min(max(bisect_right(row, (at, float("inf"))), 1), len(row) - 1)
    (low, low_ms), (high, high_ms) = row[above - 1], row[above]
    return max(low_ms + (high_ms - low_ms) * (at - low) / (high - low), low_ms * 0.1)
