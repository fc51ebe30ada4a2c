"""`tandem bench`: its commands are in the package `bench`, which is imported when one of them is asked for."""

from importlib import import_module

import click

NAMES = (
    "accuracy",
    "approx",
    "compare",
    "endurance",
    "engines",
    "export",
    "goodput",
    "hits",
    "micro",
    "overload",
    "plot",
    "policies",
    "reuse",
    "routing",
    "run",
    "segments",
    "shift",
    "simulate",
    "soak",
    "splits",
    "validate",
)
MODULES = {name: f"bench.commands.{name}" for name in NAMES}


class LazyGroup(click.Group):
    """A group whose commands are imported by name: other commands of `tandem` do not wait for them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """By name."""
        return sorted(MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """None: there is no such command."""
        if cmd_name not in MODULES:
            return None
        command: click.Command = getattr(import_module(MODULES[cmd_name]), cmd_name)
        return command


@click.command(cls=LazyGroup)
def bench() -> None:
    """Measure Tandem and its peers side by side."""
