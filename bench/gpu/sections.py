"""What is asked of a GPU, in stages one after another. Each section is a process of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

TESTS = "tests/gpu"
TIMED_TESTS = "millisecond or take_turns"  # of the partitions': they need the device to themselves
SECOND_CHOICE = "cuda-ipc"  # memory for drivers without VMM export


class Surroundings(StrEnum):
    """What a section's process runs under."""

    PLAIN = "plain"
    MPS = "mps"  # a client of a daemon that the run has started, where one serves; else without


@dataclass(frozen=True, slots=True)
class Section:
    """`run` is ``module:function`` in `bench.gpu.parts`, or paths of tests with spaces between them."""

    name: str
    question: str
    run: str
    surroundings: Surroundings = Surroundings.PLAIN
    num_workers: int = 1  # processes among which tests are divided, where pytest-xdist is there
    select: str = ""  # tests alone that pytest's -k takes so
    later: str = ""  # tests with this in their names come last

    @property
    def is_tests(self) -> bool:
        """Whether pytest runs it."""
        return "/" in self.run


@dataclass(frozen=True, slots=True)
class Stage:
    """Sections side by side, which do not disturb each other. `weight`: seconds that it may well take, a guess."""

    weight: float
    sections: tuple[Section, ...]


def stages_of(names: Sequence[str]) -> tuple[Stage, ...]:
    """Those with sections of these names, without the others. ValueError: there is no such section."""
    unknown = set(names) - {section.name for stage in STAGES for section in stage.sections}
    if unknown:
        raise ValueError(f"no section {', '.join(sorted(unknown))}")
    kept = (replace(stage, sections=tuple(each for each in stage.sections if each.name in names)) for stage in STAGES)
    return tuple(stage for stage in kept if stage.sections)


MPS = Surroundings.MPS
STAGES = (
    Stage(  # compilers and starting processes, mostly; nothing here is timed
        66,
        (
            Section("device", "versions, groups of SMs, granularity", "device:device"),
            Section(
                "kernel-tests",
                "the kernels against their references, captured ones too",
                f"{TESTS}/kernels {TESTS}/test_captured_kernels.py",
                num_workers=8,
            ),
            Section(
                "partition-tests",
                "SMs disjoint, as asked, the same cut twice; a busy client ended",
                f"{TESTS}/test_partition.py",
                select=f"not ({TIMED_TESTS})",
            ),
            Section("greedy", "a small model's tokens are the processor's", "greedy:greedy"),
            Section("compile", "nothing: later sections find their kernels compiled", "compiling:compile_ahead"),
        ),
    ),
    Stage(32, (Section("models", "decode <= 1.25x / 1.4x its floor, prefill >= 60 %", "models:models"),)),
    Stage(62, (Section("switches", "decode's stall with each backend: p99 < 1 ms", "switches:switches", MPS),)),
    Stage(37, (Section("shares", "step times over the share, alone and beside", "shares:shares", MPS),)),
    Stage(29, (Section("attach", "a phase that starts again: < 10 s; the last user", "attach:attach"),)),
    Stage(49, (Section("deployment", "cold from files; decode killed", "deployment:deployment", MPS),)),
    Stage(27, (Section("kernels", "attention and draws against torch and floors", "kernels:kernels"),)),
    Stage(
        42,
        (
            Section(
                "memory-tests",
                "memd's memory: no context, no copy, read-only",
                f"{TESTS}/test_memory.py",
                later=SECOND_CHOICE,
            ),
        ),
    ),
    Stage(25, (Section("faults", "whose fault reaches whom", "faults:faults", MPS),)),
    Stage(
        23,
        (
            Section(
                "timed-tests",
                "a switch < 1 ms, turns in a ratio",
                f"{TESTS}/test_partition.py",
                select=TIMED_TESTS,
            ),
        ),
    ),
    Stage(118, (Section("goodput", "semi-pd over colocated: the mark is 1.55", "goodput:goodput", MPS),)),
)
NAMES = tuple(section.name for stage in STAGES for section in stage.sections)
