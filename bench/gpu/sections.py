"""What is asked of a GPU, the most valuable first. Each section is a process of its own."""

from dataclasses import dataclass
from enum import StrEnum

TESTS = "tests/gpu"


class Surroundings(StrEnum):
    """What a section's process runs under."""

    PLAIN = "plain"
    MPS = "mps"  # a client of a daemon that the run has started
    MPS_OR_ALONE = "mps-or-alone"  # likewise where there is one; else without


@dataclass(frozen=True, slots=True)
class Section:
    """`run` is ``module:function`` in `bench.gpu.parts`, or the path of tests, after a slash."""

    name: str
    question: str
    run: str
    limit_s: float
    surroundings: Surroundings = Surroundings.PLAIN
    num_workers: int = 1  # processes among which tests are divided, where pytest-xdist is there

    @property
    def is_tests(self) -> bool:
        """Whether pytest runs it."""
        return "/" in self.run


ALONE = Surroundings.MPS_OR_ALONE
SECTIONS = (
    Section("floors", "copy bandwidth and matrix rate of this card", "device:floors", 40),
    Section("driver", "versions, granularity, groups of SMs", "device:driver_facts", 30),
    Section("kernel-tests", "the kernels against their references", f"{TESTS}/kernels", 150, num_workers=8),
    Section("captured-tests", "captured kernels follow their tensors", f"{TESTS}/test_captured_kernels.py", 60),
    Section("greedy", "a small model's tokens are the processor's", "greedy:greedy", 60),
    Section("llama", "Llama-3-8B: decode <= 1.25x / 1.4x its floor, prefill >= 60 %", "models:llama", 90),
    Section("memory-tests", "memd's memory: no context, no copy, read-only", f"{TESTS}/test_memory.py", 130),
    Section("partition-tests", "SMs disjoint, as asked, the same cut twice", f"{TESTS}/test_partition.py", 130),
    Section("graphs-keep-sms", "a graph keeps to its stream's SMs", "faults:graph_keeps_its_sms", 40, ALONE),
    Section("repartition", "stall of 1,000 switches: p99 < 1 ms", "shares:repartition", 110, ALONE),
    Section("attach", "a phase that starts again: < 10 s", "attach:attach", 90),
    Section("deployment", "on device memory; decode killed in an answer", "deployment:deployment", 150, ALONE),
    Section("shares-alone", "step time and prefill rate over the share", "shares:alone", 80, ALONE),
    Section("shares-together", "likewise, side by side", "shares:together", 90, Surroundings.MPS),
    Section("attention", "attention against float64, SDPA and its floor", "kernels:attention", 60),
    Section("qwen", "Qwen2.5-7B, as Llama", "models:qwen", 90),
    Section("sampling", "draws of 64 rows", "kernels:sampling", 40),
    Section("last-user", "memory outlives the last user of the device", "device:last_user", 60),
    Section("faults-without-mps", "a fault stays in its process", "faults:without_mps", 40),
    Section("faults-with-mps", "a fault takes every client", "faults:with_mps", 40, Surroundings.MPS),
    Section("goodput", "semi-pd over colocated: the mark is 1.55", "deployment:goodput", 400, ALONE),
)
