"""`tandem generate`."""

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from tandem.cli.deployment import Overrides, address_option, connected, deployment_options, resolve
from tandem.cli.sampling import sampling_options
from tandem.cli.stdin import text_stdin


@click.command()
@click.argument("prompt")
@address_option
@deployment_options
@sampling_options
def generate(prompt: str, address: str | None, config_file: Path | None, run_dir: Path | None, **sampling: Any) -> None:
    """Complete PROMPT and print the text as it comes. A PROMPT of - is read from standard input."""
    deployment = resolve(Overrides(config_file, run_dir), os.environ)
    text = text_stdin().read() if prompt == "-" else prompt
    with (
        connected(deployment, address) as client,
        closing(client.generate(text, **sampling)) as pieces,
    ):
        for piece in pieces:
            click.echo(piece.text_delta, nl=False)
    click.echo()
