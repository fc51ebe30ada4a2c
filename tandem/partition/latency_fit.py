"""Equation 4 of the semi-PD paper (arXiv 2504.19867), fitted to the windows that have closed. Pure.

``TTFT(x) = a1 / (x - lambda) + b1`` and ``TPOT(y) = a2 / y + b2`` over shares in (0, 1], with ``lambda = c * rate``:
the share that prefill's load takes up grows with the rate at which requests come.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tandem.partition.observations import WindowSummary

# The paper's own fit (Llama3-8B, ShareGPT, normalised): what a curve looks like before two shares have been seen.
PAPER_CONSTANT_PART_TTFT = 0.022 / (0.6809 + 0.022)
PAPER_CONSTANT_PART_TPOT = 0.3818 / (0.6284 + 0.3818)
LAMBDA_TRIES = 24
CLOSEST = 0.02  # x is taken to be at least so far above lambda


@dataclass(frozen=True, slots=True)
class TtftCurve:
    """``a1``, ``b1`` in milliseconds; `load` is lambda at the newest window's rate."""

    a1_ms: float
    b1_ms: float
    load: float

    def at(self, x: float) -> float:
        """Milliseconds; very many where the share does not carry the load."""
        return self.a1_ms / max(x - self.load, CLOSEST) + self.b1_ms


@dataclass(frozen=True, slots=True)
class TpotCurve:
    """``a2``, ``b2`` in milliseconds."""

    a2_ms: float
    b2_ms: float

    def at(self, y: float) -> float:
        """Milliseconds."""
        return self.a2_ms / y + self.b2_ms


@dataclass(frozen=True, slots=True)
class _Line:
    """``value = slope * basis + constant``, neither below 0."""

    slope: float
    constant: float
    error: float


def fit_ttft(windows: Sequence[WindowSummary]) -> TtftCurve:
    """At least one window with a TTFT. Lambda is looked for below the least share in which a window was served."""
    xs = [relative_share(window)[0] for window in windows]
    rates = [window.requests_per_s for window in windows]
    values = [window.ttft_p90_ms for window in windows]
    highest = min(x / max(rate, 1e-9) for x, rate in zip(xs, rates, strict=True))
    tries = [highest * number / LAMBDA_TRIES for number in range(LAMBDA_TRIES)]
    found = []
    for c in tries:
        basis = [1.0 / max(x - c * rate, CLOSEST) for x, rate in zip(xs, rates, strict=True)]
        found.append((_line(basis, values, PAPER_CONSTANT_PART_TTFT), c))
    line, c = min(found, key=lambda each: each[0].error)
    return TtftCurve(line.slope, line.constant, c * rates[-1])


def fit_tpot(windows: Sequence[WindowSummary]) -> TpotCurve:
    """At least one window with a TPOT."""
    basis = [1.0 / relative_share(window)[1] for window in windows]
    line = _line(basis, [window.tpot_p90_ms for window in windows], PAPER_CONSTANT_PART_TPOT)
    return TpotCurve(line.slope, line.constant)


def relative_share(window: WindowSummary) -> tuple[float, float]:
    """Both phases' part of what is given out."""
    total = window.split.prefill_percent + window.split.decode_percent
    return window.split.prefill_percent / total, window.split.decode_percent / total


def _line(basis: Sequence[float], values: Sequence[float], constant_part: float) -> _Line:
    """Least squares; through one basis value alone the constant is that part of the mean."""
    mean_basis, mean_value = sum(basis) / len(basis), sum(values) / len(values)
    spread = sum((each - mean_basis) ** 2 for each in basis)
    constant = mean_value * constant_part
    if spread > 1e-9:
        products = zip(basis, values, strict=True)
        slope = sum((each - mean_basis) * (value - mean_value) for each, value in products) / spread
        constant = mean_value - slope * mean_basis
    constant = min(max(constant, 0.0), mean_value)
    slope = (mean_value - constant) / mean_basis
    error = sum((slope * each + constant - value) ** 2 for each, value in zip(basis, values, strict=True))
    return _Line(slope, constant, error)
