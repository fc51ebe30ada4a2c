"""`tandem bench accuracy`."""

from pathlib import Path

import click
from rich.progress import Progress

from bench.accuracy.measure import AccuracyPlan, measure
from bench.accuracy.off_grid import OffGridSource
from bench.accuracy.result import AccuracyResult, accuracy_table
from bench.accuracy.windows import cut
from bench.display import new_console
from bench.results import provenance, write_result
from tandem.config.settings import default_cache_dir
from tandem.errors import ConfigError
from tandem.model.metadata import read_metadata
from tandem.model.source import open_model

_PATH = click.Path(path_type=Path)


@click.command()
@click.option("--model", default="default", show_default=True, help="As for tandem up.")
@click.option("--text", type=_PATH, help="What is read; default: what the model itself writes, in float32.")
@click.option("--windows", default=8, show_default=True, type=click.IntRange(1), help="Sequences, each from its start.")
@click.option("--window-tokens", default=512, show_default=True, type=click.IntRange(2), help="Length of each.")
@click.option("--off-grid", is_flag=True, help="Equivalent weights, on no grid of a file that is quantised already.")
@click.option("--out", type=_PATH, default=Path("bench-accuracy.json"), show_default=True, help="The JSON file.")
def accuracy(*, model: str, text: Path | None, windows: int, window_tokens: int, off_grid: bool, out: Path) -> None:
    """Measure what each memd.quantization costs: next-token distributions and perplexity against float32."""
    console = new_console()
    source = open_model(model, default_cache_dir())
    chosen = OffGridSource(source) if off_grid else source
    read = cut(_token_ids(model, text), windows, window_tokens) if text else []
    plan = AccuracyPlan(chosen, len(read) or windows, window_tokens, read)
    with Progress(console=console) as progress:
        task = progress.add_task("windows", total=None)
        variants = measure(plan, lambda: progress.advance(task))
    text_name = text.name if text else "written by the model"
    result = AccuracyResult(provenance(), chosen.name, text_name, plan.num_windows, window_tokens, variants)
    write_result(out, result, AccuracyResult)
    console.print(accuracy_table(result))
    console.print(f"written to {out}")


def _token_ids(model: str, text: Path) -> list[int]:
    """ConfigError: the file cannot be read."""
    try:
        content = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("text", f"{text}: {error}") from error
    return read_metadata(model, default_cache_dir()).tokenizer.encode(content)
