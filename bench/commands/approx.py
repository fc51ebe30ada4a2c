"""`tandem bench approx`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import torch
from rich.progress import Progress

from bench.approx.display import comparison_table, cost_table, divergence_table, stage_table
from bench.approx.item import Item, make_item
from bench.approx.measure import measure
from bench.approx.model import ApproxModel, room_for
from bench.approx.musique import read_musique
from bench.approx.results import ApproxResult
from bench.approx.settings import Settings
from bench.approx.summary import summarise
from bench.approx.synthetic import synthetic
from bench.display import new_console
from bench.results import provenance, write_result
from tandem.clock import MonotonicClock
from tandem.config.settings import default_cache_dir
from tandem.errors import ConfigError
from tandem.model.metadata import read_metadata
from tandem.model.source import open_model

_PATH = click.Path(path_type=Path)


@click.command()
@click.option("--model", default="default", show_default=True, help="As for tandem up.")
@click.option("--musique", type=_PATH, help="CacheBlend's sample of MuSiQue, as JSON; default: synthetic items alone.")
@click.option("--items", default=40, show_default=True, type=click.IntRange(1), help="Of MuSiQue.")
@click.option(
    "--passages", default=3, show_default=True, type=click.IntRange(1), help="Of each of MuSiQue's questions."
)
@click.option("--synthetic-items", default=24, show_default=True, type=click.IntRange(0))
@click.option("--ratios", default="0,0.05,0.15,0.3,1", show_default=True, help="Of the reused tokens, computed.")
@click.option("--dtype", default="bfloat16", show_default=True, type=click.Choice(["bfloat16", "float32"]))
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=_PATH, default=Path("bench-approx.json"), show_default=True, help="The JSON file.")
def approx(*, model: str, ratios: str, dtype: str, out: Path, **given: Any) -> None:
    """Measure what reusing documents' KV anywhere in a prompt gains in TTFT and costs in accuracy."""
    console = new_console()
    settings = Settings(ratios=_ratios(ratios))
    sets = _items(model, given)
    every = [item for chosen in sets.values() for item in chosen]
    source = open_model(model, default_cache_dir())
    subject = ApproxModel(source, room_for(every, settings, source.config), getattr(torch, dtype))
    with Progress(console=console) as progress:
        task = progress.add_task("prompts", total=len(every))
        summaries = tuple(
            summarise(name, measure(subject, chosen, settings, MonotonicClock(), lambda: progress.advance(task)))
            for name, chosen in sets.items()
        )
    result = ApproxResult(provenance(), source.name, subject.kernels_name, settings, summaries)
    write_result(out, result, ApproxResult)
    for summary in summaries:
        for table in (divergence_table, cost_table, comparison_table, stage_table):
            console.print(table(summary))
    console.print(f"written to {out}; plot it with: tandem bench plot {out}")


def _items(model: str, given: Mapping[str, Any]) -> dict[str, list[Item]]:
    """By the set's name."""
    seed, musique = given["seed"], given["musique"]
    texts = {} if musique is None else {"musique": read_musique(musique, given["items"], given["passages"], seed)}
    if given["synthetic_items"]:
        texts["synthetic"] = synthetic(given["synthetic_items"], seed)
    if not texts:
        raise ConfigError("synthetic-items", "0 and no --musique: there is nothing to measure")
    tokenizer = read_metadata(model, default_cache_dir()).tokenizer

    def encode(part: str) -> list[int]:
        return tokenizer.encode(part, add_special_tokens=False)

    return {name: [make_item(text, encode) for text in found] for name, found in texts.items()}


def _ratios(text: str) -> tuple[float, ...]:
    """ConfigError."""
    try:
        ratios = tuple(float(number) for number in text.split(","))
    except ValueError:
        raise ConfigError("ratios", f"{text!r} are not numbers with commas between them") from None
    if not all(0 <= ratio <= 1 for ratio in ratios):
        raise ConfigError("ratios", f"{text}: each is from 0 to 1")
    return ratios
