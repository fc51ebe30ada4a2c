"""llama.cpp through its own `llama-batched-bench`: one process a case, warmed up by itself."""

import json
import subprocess
from dataclasses import dataclass

from bench.engines.cases import Case
from tandem.errors import NotReadyError
from tandem.types import Phase

ROOM = 1.25  # it rounds each sequence's context down
CELLS = 256  # to a multiple of these
LAST_CHARS = 2000


@dataclass(frozen=True, slots=True)
class LlamaBatchedBench:
    """An `Engine`. `program` is llama-batched-bench, `model` a GGUF file."""

    program: str
    model: str
    num_threads: int

    def seconds(self, case: Case) -> float:
        """See `Engine`."""
        done = subprocess.run(self.command(case), capture_output=True, text=True, check=False)  # noqa: S603
        try:
            return seconds_of(case, done.stdout)
        except (ValueError, LookupError) as error:
            raise NotReadyError(
                f"{self.program} has no result (status {done.returncode}): {done.stderr[-LAST_CHARS:]}"
            ) from error

    def command(self, case: Case) -> list[str]:
        """Its defaults, but for threads and sizes."""
        each = -(-int((case.num_prompt_tokens + case.num_new_tokens) * ROOM) // CELLS) * CELLS
        flags = {
            "--model": self.model,
            "--threads": self.num_threads,
            "--threads-batch": self.num_threads,
            "--ctx-size": case.num_sequences * each,
            "-npp": case.num_prompt_tokens,
            "-ntg": case.num_new_tokens,
            "-npl": case.num_sequences,
            "--output-format": "jsonl",
        }
        return [self.program, *(part for flag, value in flags.items() for part in (flag, str(value)))]


def seconds_of(case: Case, output: str) -> float:
    """From its lines of JSON. ValueError, LookupError: there is none of this case."""
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    (row,) = (row for row in rows if (row["pp"], row["pl"]) == (case.num_prompt_tokens, case.num_sequences))
    return float(row["t_pp" if case.phase is Phase.PREFILL else "t_tg"])
