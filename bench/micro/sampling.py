"""``python -m bench.micro.sampling``: how much of a decode step is not the model's own operators, by way of sampling.

The phase's own step loop, engine, stepper, runner and sampler over a real model; memd alone is played. A step lasts
from the beginning of one forward pass to that of the next. Ways of sampling take turns, so that a disturbance falls on
all.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
import uvloop
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.micro.engines import BLOCK_SIZE, Blocks, make_outfit, new_lease
from bench.micro.overhead import OperatorTime
from kernels.choice import choose_kernels
from services.decode.engine import DecodeEngine
from tandem.config.settings import CommonConfig, default_cache_dir
from tandem.device.partition import Applied, RestartRequired
from tandem.device.whole import WholeDeviceBackend
from tandem.model.batch import SequenceRows
from tandem.model.config import ModelConfig
from tandem.model.manifest import build_manifest
from tandem.model.metadata import read_metadata
from tandem.model.registry import get_family
from tandem.model.source import fill, open_model
from tandem.phase.limits import PhaseLimits
from tandem.phase.loop import Reporter, StepLoop
from tandem.phase.share import ShareKeeper
from tandem.phase.stepper import Stepper
from tandem.runner.model_runner import ModelRunner
from tandem.runner.sampler import Draw, SampledToken, sample
from tandem.runner.steps import LogitsThenDraws, Sampler, TokenCopy
from tandem.telemetry.logs import configure_logging
from tandem.types import Phase, SamplingSpec, SequenceSpec, Split, StepStatistics, StopSpec, Submit

DTYPE = torch.bfloat16
NUM_UNCOUNTED = 4  # steps: the first computes the prompts
MS = 1e3

SAMPLINGS: Mapping[str, SamplingSpec] = {
    "greedy": SamplingSpec(temperature=0.0),
    "temperature 0.8": SamplingSpec(temperature=0.8),
    "temperature 0.8, top_p 0.95": SamplingSpec(temperature=0.8, top_p=0.95),
    "temperature 0.8, top_p 0.95, top_k 40": SamplingSpec(temperature=0.8, top_p=0.95, top_k=40),
    "temperature 0.8, min_p 0.05": SamplingSpec(temperature=0.8, min_p=0.05),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run."""

    batch: int
    num_context_tokens: int
    num_steps: int  # counted, of each run
    num_rounds: int


@dataclass(frozen=True, slots=True)
class StepParts:
    """Milliseconds of one step, which are all of it."""

    operators_ms: float  # as `OperatorTime` has them
    inputs_ms: float  # batch, embedding, angles, plan
    sampling_ms: float
    engine_ms: float  # loop and engine, there and back from the step's thread

    @property
    def overhead(self) -> float:
        """The part of the step that is not the operators'."""
        return 1 - self.operators_ms / self.total_ms

    @property
    def total_ms(self) -> float:
        """The step."""
        return self.operators_ms + self.inputs_ms + self.sampling_ms + self.engine_ms


class StepClock:
    """Takes the times of steps, on the step's thread."""

    def __init__(self, num_steps: int) -> None:
        """`done` is set after that many."""
        self.done = asyncio.Event()
        self.steps: list[StepParts] = []
        self.operators = OperatorTime()
        self._num_steps = num_steps
        self._loop = asyncio.get_running_loop()
        self._begun_s = 0.0  # of the step under way
        self._forward_ms = 0.0
        self._sampling_ms = 0.0

    def begin(self) -> None:
        """A forward pass begins, and with it a step."""
        now_s = time.perf_counter()
        if self._begun_s:
            self._end((now_s - self._begun_s) * MS)
        self._begun_s, self._forward_ms, self._sampling_ms = now_s, 0.0, 0.0

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Counts the block as a forward pass."""
        started_s = time.perf_counter()
        yield
        self._forward_ms += (time.perf_counter() - started_s) * MS

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Counts the block as sampling."""
        started_s = time.perf_counter()
        yield
        self._sampling_ms += (time.perf_counter() - started_s) * MS

    def _end(self, step_ms: float) -> None:
        operators_ms = self.operators.take_ms()
        inputs_ms = self._forward_ms - operators_ms
        engine_ms = step_ms - self._forward_ms - self._sampling_ms
        self.steps.append(StepParts(operators_ms, inputs_ms, self._sampling_ms, engine_ms))
        if len(self.steps) == self._num_steps:
            self._loop.call_soon_threadsafe(self.done.set)


@dataclass
class Timed:
    """A model whose operators, forward passes and draws are timed by whatever clock it is given."""

    clock: StepClock
    runner: ModelRunner
    sampler: Sampler

    def copy_tokens(self, copies: Sequence[TokenCopy]) -> None:
        """See `RowsRunner`."""
        self.runner.copy_tokens(copies)

    def execute(self, rows: Sequence[SequenceRows]) -> torch.Tensor:
        """See `RowsRunner`."""
        self.clock.begin()
        with self.clock.forward():
            return self.runner.execute(rows)

    def sample(self, logits: torch.Tensor, draws: Sequence[Draw]) -> list[SampledToken]:
        """See `Sampler`."""
        with self.clock.sampling():
            return self.sampler(logits, draws)


class NoController:
    """A `ControllerPort` that nobody listens to."""

    def pending(self) -> tuple[int, Split] | None:
        """None ever."""
        return None

    def report_step(self, step: StepStatistics) -> None:
        """Passed over."""

    def report_applied(self, decision_id: int, outcome: Applied | RestartRequired, apply_ms: float) -> None:
        """Passed over."""


class Subject:
    """The model, and a KV cache for the plan."""

    def __init__(self, model: str, plan: Plan) -> None:
        source = open_model(model, default_cache_dir())
        text = "".join(path.read_text() for path in sorted(Path(__file__).parent.glob("*.py")))
        self._text = read_metadata(model, default_cache_dir()).tokenizer.encode(text)
        self.config: ModelConfig = source.config
        self.plan = plan
        family = get_family(self.config.family)
        parameters = family.parameters(self.config)
        self._weights = {each.name: torch.empty(each.shape, dtype=DTYPE) for each in parameters}
        fill(source, parameters, build_manifest(parameters, "bfloat16"), self._weights)
        most_tokens = plan.num_context_tokens + NUM_UNCOUNTED + plan.num_steps + BLOCK_SIZE
        self.num_ahead_blocks = plan.batch * (most_tokens // BLOCK_SIZE + 2)
        self.num_blocks = 3 * self.num_ahead_blocks  # a refill must not bring blocks that are in use
        shape = (self.config.num_layers, 2, self.num_blocks, BLOCK_SIZE, self.config.num_kv_heads, self.config.head_dim)
        self._kv_cache = torch.zeros(shape, dtype=DTYPE)

    def timed(self, clock: StepClock) -> Timed:
        """The runner over the kernels that a phase would choose."""
        kernels = choose_kernels(DTYPE).kernels
        decoder = get_family(self.config.family).build(self.config, self._weights, clock.operators.counted(kernels))
        return Timed(
            clock, ModelRunner(decoder, self._kv_cache, BLOCK_SIZE), partial(sample, draw_by=kernels.draw_tokens)
        )

    def spec(self, lease_id: int, sampling: SamplingSpec) -> SequenceSpec:
        """A piece of this package's source, whose probabilities are a text's; no token ends it."""
        first = lease_id * 97 % (len(self._text) - self.plan.num_context_tokens)
        return SequenceSpec(
            lease_id=lease_id,
            request_id=f"{lease_id}",
            token_ids=tuple(self._text[first : first + self.plan.num_context_tokens]),
            num_prompt_tokens=self.plan.num_context_tokens,
            sampling=replace(sampling, seed=lease_id),
            stop=StopSpec(max_tokens=1 << 30),
        )


async def run_steps(subject: Subject, sampling: SamplingSpec) -> list[StepParts]:
    """Of one run: equal sequences, submitted together and never ending."""
    plan, config = subject.plan, subject.config
    limits = PhaseLimits(plan.batch, BLOCK_SIZE, subject.num_blocks, config.vocab_size, config.max_position_embeddings)
    outfit = make_outfit(Phase.DECODE, Blocks(subject.num_blocks, new_lease), limits, subject.num_ahead_blocks)
    clock = StepClock(NUM_UNCOUNTED + plan.num_steps)
    timed = subject.timed(clock)
    engine = DecodeEngine(outfit)
    session = engine.open_session()
    for number in range(plan.batch):
        engine.command(session, Submit(subject.spec(number, sampling)))
    engine.start()
    while engine.load().num_waiting < plan.batch or engine.load().num_spare_blocks < subject.num_ahead_blocks:  # noqa: ASYNC110
        await asyncio.sleep(0)
    stepper = Stepper(LogitsThenDraws(timed, timed.sample))
    backend, controller = WholeDeviceBackend(), NoController()
    loop = StepLoop(
        outfit.steps,
        wake=outfit.steps.wake,
        stepper=stepper,
        share=ShareKeeper(Phase.DECODE, controller, backend, stepper, metrics=outfit.metrics, clock=outfit.clock),
        reporter=Reporter(controller, outfit.metrics, time.time_ns),
        clock=outfit.clock,
    )
    threads = torch.get_num_threads()
    await stepper.run_in_thread(lambda: torch.set_num_threads(threads))
    outfit.crew.spawn(loop.run())
    await clock.done.wait()
    await outfit.crew.cancel()
    return clock.steps[NUM_UNCOUNTED : NUM_UNCOUNTED + plan.num_steps]


def measure(subject: Subject, num_threads: int, advance: Callable[[], None]) -> dict[str, StepParts]:
    """Medians by way of sampling; `advance` is called after each run."""
    torch.set_num_threads(num_threads)
    steps: dict[str, list[StepParts]] = {name: [] for name in SAMPLINGS}
    for _ in range(subject.plan.num_rounds):
        for name, sampling in SAMPLINGS.items():
            steps[name] += uvloop.run(run_steps(subject, sampling))
            advance()
    return {name: _medians(each) for name, each in steps.items()}


def _medians(steps: Sequence[StepParts]) -> StepParts:
    return StepParts(*(median(getattr(step, part.name) for step in steps) for part in fields(StepParts)))


def table(measured: Mapping[str, StepParts], plan: Plan, num_threads: int) -> Table:
    """A row a way of sampling; overhead is everything but the operators."""
    view = Table(title=f"decode step, {plan.batch} x {plan.num_context_tokens} tokens, {num_threads} threads, ms")
    for heading in ("sampling", "step", "operators", "inputs", "draw", "engine", "overhead"):
        view.add_column(heading, justify="left" if heading == "sampling" else "right")
    for name, step in measured.items():
        times = (step.total_ms, step.operators_ms, step.inputs_ms, step.sampling_ms, step.engine_ms)
        view.add_row(name, *(f"{value:.2f}" for value in times), f"{step.overhead:.1%}")
    return view


def main(arguments: Sequence[str]) -> int:
    """Always 0."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.micro.sampling", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--model", default=CommonConfig().model)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args(arguments)
    configure_logging("bench", "error")
    console = Console()
    plan = Plan(options.batch, options.context, options.steps, options.rounds)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("runs", total=plan.num_rounds * len(SAMPLINGS))
        measured = measure(Subject(options.model, plan), options.threads, lambda: progress.advance(task))
    console.print(table(measured, plan, options.threads))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
