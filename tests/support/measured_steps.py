"""Step times as a measurement gives them: ten milliseconds a row on one thread, half of that on two."""

from bench.micro.table import StepShape, StepTime
from tandem.types import Phase

STEPS = tuple(
    StepTime(StepShape(phase, threads, batch, rows, context), 10.0 * batch * rows / threads, 0.0, 0.0, 0.0)
    for threads in (1, 2)
    for phase, batch, rows, context in (
        (Phase.DECODE, 1, 1, 128),
        (Phase.DECODE, 8, 1, 128),
        (Phase.PREFILL, 1, 64, 64),
        (Phase.PREFILL, 1, 128, 128),
    )
)
