"""`tandem bench engines`."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress

from bench.commands.options import tandem_options
from bench.deployment.settings import parse_settings
from bench.display import new_console
from bench.engines.cases import default_cases
from bench.engines.display import ratio_table, speed_table
from bench.engines.engine import parse_engine
from bench.engines.open import EngineOptions, open_engine
from bench.engines.results import EnginesResult
from bench.engines.rounds import measure, ratios
from bench.results import provenance, write_result
from tandem.errors import ConfigError


@click.command()
@click.argument("engines", nargs=-1, required=True)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="One more is not counted.")
@click.option("--threads", type=click.IntRange(1), help="Default: every processor that this command may use.")
@click.option("--llama-batched-bench", default="llama-batched-bench", show_default=True, help="llama.cpp's program.")
@click.option("--peer-python", default="python3", show_default=True, help="Of the environment that has vLLM.")
@click.option("--vllm-eager", is_flag=True, help="Do not let vLLM compile the model.")
@tandem_options
def engines(engines: Sequence[str], rounds: int, threads: int | None, out: Path, **given: Any) -> None:
    """Measure the ENGINES alone, in turn: prefill, decode batches; the first one's speeds over the others'.

    ENGINES are tandem, tandem:KEY=VALUE (a flag of memd), llama.cpp:GGUF, vllm:FOLDER.
    """
    specs = [parse_engine(text) for text in engines]
    if len({spec.name for spec in specs}) < len(specs):
        raise ConfigError("engines", "two of them have one name")
    console, cases = new_console(), default_cases()
    options = EngineOptions(
        model=given["model"],
        num_threads=threads or len(os.sched_getaffinity(0)),
        cases=cases,
        settings=parse_settings(given["settings"]),
        llama_batched_bench=given["llama_batched_bench"],
        peer_python=given["peer_python"],
        vllm_eager=given["vllm_eager"],
    )
    with contextlib.ExitStack() as opened, Progress(console=console) as progress:
        task = progress.add_task("engines", total=len(specs) * len(cases) * (rounds + 1))
        ready = {spec.name: opened.enter_context(open_engine(spec, options)) for spec in specs}
        speeds = measure(ready, cases, rounds, lambda: progress.advance(task))
    result = EnginesResult(provenance(), options.num_threads, speeds, ratios(speeds))
    write_result(out, result, EnginesResult)
    console.print(speed_table(result))
    console.print(ratio_table(result))
    console.print(f"written to {out}")
