"""The sampling flags of `tandem generate` and `tandem chat`; one that is not given is the server's to choose."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., object])

_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--max-tokens", type=int, help="Of the answer; default: the server's."),
    click.option("--min-tokens", type=int),
    click.option("--temperature", type=float, help="0 is greedy."),
    click.option("--top-p", type=float),
    click.option("--top-k", type=int),
    click.option("--min-p", type=float),
    click.option("--repetition-penalty", type=float),
    click.option("--presence-penalty", type=float),
    click.option("--frequency-penalty", type=float),
    click.option("--stop", multiple=True, help="Text that ends the answer; may be given more than once."),
    click.option("--ignore-eos", is_flag=True, default=None),
    click.option("--seed", type=int),
)


def sampling_options(command: _Command) -> _Command:
    """Adds every sampling flag; the command takes them as keyword arguments, None for one that is not given."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
