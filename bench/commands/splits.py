"""`tandem bench splits`."""

from pathlib import Path

import click

from bench.display import new_console
from bench.micro.splits import SplitsResult, measure_splits, splits_table
from bench.results import write_result
from bench.simulate.contest import parse_split
from tandem.telemetry.logs import configure_logging


@click.command()
@click.argument("splits", nargs=-1)
@click.option("--model", default="default", show_default=True, help="As for tandem up.")
@click.option("--backend", default="auto", show_default=True, help="As partition_backend.")
@click.option("--seconds", default=4.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Of each.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("splits-result.json"), show_default=True)
def splits(splits: tuple[str, ...], model: str, backend: str, seconds: float, out: Path) -> None:
    """Measure steps under SPLITS (X,Y ...; default: five): decode of 16 sequences, prompts of 512 tokens."""
    console = new_console()
    configure_logging("bench", "error")
    chosen = [parse_split(text) for text in splits or ("20,80", "35,65", "50,50", "65,35", "80,20")]
    result = measure_splits(model, chosen, seconds, backend)
    write_result(out, result, SplitsResult)
    console.print(splits_table(result))
    console.print(f"written to {out}")
