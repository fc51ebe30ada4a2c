"""Whether the two phases really have SMs of their own: two processes take their shares and are probed together."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

from kernels.gpu.sm_use import SmUse, share_faults
from tandem.errors import DeviceError
from tandem.types import Phase, Split

PROBE = (sys.executable, "-P", "-m", "tandem.phase.sm_probe")


@dataclass(frozen=True, slots=True)
class SmReport:
    """What each phase should have, what it used, and what is wrong with that; no faults where shares are disjoint."""

    quotas: Mapping[Phase, int]
    uses: Mapping[Phase, SmUse]

    @property
    def faults(self) -> tuple[str, ...]:
        """In words; prefill's share is the first."""
        prefill, decode = Phase.PREFILL, Phase.DECODE
        return share_faults(
            self.uses[prefill], self.uses[decode],
            first_quota=self.quotas[prefill], second_quota=self.quotas[decode],
        )  # fmt: skip


def check_sms(split: Split, environ: Mapping[str, str], probe: Sequence[str] = PROBE) -> SmReport:
    """`environ`: what the phases are started with. DeviceError with what a probe said when it failed."""
    with ExitStack() as stack:
        probes = {phase: stack.enter_context(_Probe(phase, split, environ, probe)) for phase in Phase}
        for each in probes.values():
            each.wait_ready()
        for each in probes.values():
            each.release()
        answers = {phase: each.answer() for phase, each in probes.items()}
    return SmReport(
        {phase: answer["quota"] for phase, answer in answers.items()},
        {phase: SmUse(frozenset(a["sm_ids"]), a["from_ns"], a["to_ns"]) for phase, a in answers.items()},
    )


class _Probe:
    """A running `tandem.phase.sm_probe`; killed at the end of its context, when it waits or has ended."""

    def __init__(self, phase: Phase, split: Split, environ: Mapping[str, str], command: Sequence[str]) -> None:
        shares = (str(split.prefill_percent), str(split.decode_percent))
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [*command, phase, *shares],
            env=dict(environ), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def wait_ready(self) -> None:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():  # what is logged before is passed over
            if line == "ready\n":
                return
        raise self._failure()

    def release(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        try:
            answer: dict[str, Any] = json.loads(self._process.stdout.read())
        except ValueError as error:
            raise self._failure() from error
        return answer

    def _failure(self) -> DeviceError:
        self._process.kill()
        _, said = self._process.communicate()
        words = said.strip().splitlines()
        return DeviceError(f"the SM probe failed: {words[-1] if words else f'status {self._process.returncode}'}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self._process.kill()
        self._process.communicate()
