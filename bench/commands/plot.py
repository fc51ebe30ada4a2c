"""`tandem bench plot`."""

from pathlib import Path

import click

from bench.display import new_console
from bench.plots import plot as plot_result
from bench.reading import read_result


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out-dir", type=click.Path(path_type=Path), help="Default: beside the file.")
def plot(file: Path, out_dir: Path | None) -> None:
    """Draw a result FILE as PNG: latencies of run and compare, attainment over the rate of goodput, and so on."""
    console = new_console()
    for path in plot_result(read_result(file), out_dir or file.parent, file.stem):
        console.print(f"written to {path}")
