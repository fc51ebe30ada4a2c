"""`tandem bench export`."""

from pathlib import Path

import click

from bench.deployment.hf_export import export_hf_folder
from bench.display import new_console
from tandem.config.settings import default_cache_dir


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--model", default="default", show_default=True, help="As for tandem up; a GGUF file.")
def export(folder: Path, model: str) -> None:
    """Write the model into FOLDER as peers read it: Hugging Face configuration, tokenizer, bfloat16 weights."""
    console = new_console()
    export_hf_folder(model, default_cache_dir(), folder)
    console.print(f"written to {folder}; its weights are those that Tandem reads")
