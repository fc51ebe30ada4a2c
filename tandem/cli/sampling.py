"""The sampling flags of `tandem generate` and `tandem chat`; one that is not given is the server's to choose."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., object])

_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--max-tokens", type=int, help="Of the answer; default: the server's."),
    click.option("--min-tokens", type=int, help="No end token or stop text ends the answer sooner."),
    click.option("--temperature", type=float, help="0 is greedy."),
    click.option("--top-p", type=float, help="Draw from the likeliest tokens that have this probability together."),
    click.option("--top-k", type=int, help="Draw from this many likeliest tokens; 0: from all."),
    click.option("--min-p", type=float, help="Least probability of a token, as a share of the likeliest's."),
    click.option("--repetition-penalty", type=float, help="Above 1 makes what was there less likely; 1: off."),
    click.option("--presence-penalty", type=float, help="Off the logit of what the answer has already; 0: off."),
    click.option("--frequency-penalty", type=float, help="The same for each time that the answer has it; 0: off."),
    click.option("--stop", multiple=True, help="Text that ends the answer; may be given more than once."),
    click.option("--ignore-eos", is_flag=True, default=None, help="Go on where the model would end."),
    click.option("--seed", type=int, help="The same seed draws the same answer."),
)


def sampling_options(command: _Command) -> _Command:
    """Adds every sampling flag; the command takes them as keyword arguments, None for one that is not given."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
