"""`tandem model`."""

import os
from pathlib import Path

import click

from tandem.cli.deployment import Overrides, deployment_options, resolve
from tandem.cli.output import new_console
from tandem.model.default_model import fetch_default_model


@click.group()
def model() -> None:
    """The default model's file."""


@model.command()
@deployment_options
def fetch(config_file: Path | None, run_dir: Path | None) -> None:
    """Download the default model (98 MB) unless it is there."""
    deployment = resolve(Overrides(config_file, run_dir), os.environ)
    console = new_console()
    with console.status("getting the default model"):
        path = fetch_default_model(deployment.cache_dir)
    console.print(str(path))
