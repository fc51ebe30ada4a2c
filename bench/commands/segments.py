"""`tandem bench segments`."""

import contextlib
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress

from bench.approx.musique import read_musique
from bench.commands.options import model_limits, numbers, tandem_options
from bench.compare import turns
from bench.deployment.open import DeploymentOptions, open_all, parse_deployments
from bench.deployment.settings import parse_settings
from bench.display import new_console
from bench.results import provenance, write_result
from bench.reuse.display import segments_table
from bench.reuse.documents import DocumentPrompt, Tokens, drawer, drawn, written
from bench.reuse.gains import gains
from bench.reuse.results import SegmentsResult
from bench.reuse.sights import OPENING_TOKENS, Asker, SightPlan, SightSample, ask_round
from bench.reuse.system import asking, parse_tandem
from bench.workloads.tokens import ordinary_tokens
from tandem.config.settings import default_cache_dir
from tandem.errors import ConfigError
from tandem.model.metadata import read_metadata

DEFAULT_DEPLOYMENTS = ("colocated", "semi-pd")


@click.command()
@click.argument("deployments", nargs=-1)
@click.option(
    "--musique",
    type=click.Path(path_type=Path),
    help="CacheBlend's sample of MuSiQue, as JSON; default: documents of random tokens.",
)
@click.option("--documents", default=3, show_default=True, type=click.IntRange(2), help="Of each prompt.")
@click.option(
    "--document-tokens", default=610, show_default=True, type=click.IntRange(64), help="Of each random document."
)
@click.option("--ratios", default="0.05,0.15,0.3", show_default=True, help="Of the reused tokens, computed.")
@click.option("--rounds", default=12, show_default=True, type=click.IntRange(1), help="One more is not counted.")
@click.option("--seed", default=0, show_default=True, help="Of MuSiQue's questions and the passages' order.")
@tandem_options
def segments(deployments: Sequence[str], *, rounds: int, out: Path, **given: Any) -> None:
    """Measure TTFT of prompts whose documents were in others before, in any order: through the gateway, in turn.

    DEPLOYMENTS: default colocated and semi-pd. All are started first; only one has requests at a time.
    """
    console = new_console()
    names = deployments or DEFAULT_DEPLOYMENTS
    specs = parse_deployments(names)
    for name in names:
        parse_tandem(name)
    plan, draw = plan_of(rounds + 1, given)
    options = DeploymentOptions(given["model"], parse_settings(given["settings"]))
    samples: dict[str, list[SightSample]] = {spec.name: [] for spec in specs}
    with contextlib.ExitStack() as opened, Progress(console=console) as progress:
        targets = opened.enter_context(open_all(specs, options))
        askers = {each.name: Asker(opened.enter_context(asking(each)), time.sleep, draw) for each in targets}
        task = progress.add_task("prompts", total=len(plan.prompts) * len(plan.cases) * len(specs))
        for number, order in enumerate(turns(list(askers), len(plan.prompts))):
            for name in order:
                for sample in ask_round(plan, number, askers[name]):
                    samples[name] += [sample] if number else []
                    progress.advance(task)
    source = "random tokens" if given["musique"] is None else "musique"
    result = SegmentsResult(provenance(), given["model"], source, given["documents"], gains(samples))
    write_result(out, result, SegmentsResult)
    console.print(segments_table(result))
    console.print(f"written to {out}; plot it with: tandem bench plot {out}")


def plan_of(num_prompts: int, given: Mapping[str, Any]) -> tuple[SightPlan, Callable[[str, int], Tokens]]:
    """With what draws random tokens of the model. ConfigError: too few prompts, too long ones, no ratios."""
    limits, run_id = model_limits(given["model"], given["max_context"]), uuid.uuid4().hex
    draw = drawer(ordinary_tokens(limits), run_id)
    prompts = _prompts(num_prompts, given, draw)
    longest = max(prompt.num_tokens for prompt in prompts) + OPENING_TOKENS + 1
    if longest > limits.max_context_tokens:
        raise ConfigError("documents", f"a prompt needs {longest} of {limits.max_context_tokens} tokens of context")
    ratios = tuple(numbers("ratios", given["ratios"]))
    if not all(0 <= ratio < 1 for ratio in ratios):
        raise ConfigError("ratios", f"{given['ratios']}: each is from 0 to below 1")
    return SightPlan(tuple(prompts), ratios, run_id), draw


def _prompts(count: int, given: Mapping[str, Any], draw: Callable[[str, int], Tokens]) -> list[DocumentPrompt]:
    path, num_documents = given["musique"], given["documents"]
    if path is None:
        return drawn(count, num_documents, given["document_tokens"], draw)
    texts = read_musique(path, count, num_documents, given["seed"])
    if len(texts) < count:
        raise ConfigError("rounds", f"{path} has {len(texts)} questions, {count} are needed")
    tokenizer = read_metadata(given["model"], default_cache_dir()).tokenizer
    return written(texts, lambda part: tokenizer.encode(part, add_special_tokens=False))
