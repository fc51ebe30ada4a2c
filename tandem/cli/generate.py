"""`tandem generate`."""

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from tandem.cli.access import access_options
from tandem.cli.deployment import Overrides, address_option, connected, deployment_options, resolve
from tandem.cli.sampling import sampling_options
from tandem.cli.stdin import text_stdin
from tandem.client import Access


@click.command()
@click.argument("prompt")
@address_option
@access_options
@deployment_options
@sampling_options
def generate(
    prompt: str,
    address: str | None,
    access: Access,
    config_file: Path | None,
    run_dir: Path | None,
    **sampling: Any,
) -> None:
    """Complete PROMPT and print the text as it comes. A PROMPT of - is read from standard input."""
    deployment = resolve(Overrides(config_file, run_dir), os.environ)
    text = text_stdin().read() if prompt == "-" else prompt
    with (
        connected(deployment, address, access) as client,
        closing(client.generate(text, **sampling)) as pieces,
    ):
        for piece in pieces:
            click.echo(piece.text_delta, nl=False)
    click.echo()
