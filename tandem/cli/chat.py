"""`tandem chat`."""

import os
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import click

from tandem.cli.access import access_options
from tandem.cli.deployment import Overrides, address_option, connected, deployment_options, resolve
from tandem.cli.sampling import sampling_options
from tandem.cli.stdin import text_stdin
from tandem.client import Access
from tandem.errors import TandemError

RESET = "/reset"
QUIT = "/quit"


@click.command()
@click.option("--system", help="What the model is told before the conversation.")
@address_option
@access_options
@deployment_options
@sampling_options
def chat(
    system: str | None,
    address: str | None,
    access: Access,
    config_file: Path | None,
    run_dir: Path | None,
    **sampling: Any,
) -> None:
    """Talk to the model. /reset forgets, /quit or Ctrl-D leaves, Ctrl-C ends the current answer."""
    deployment = resolve(Overrides(config_file, run_dir), os.environ)
    with connected(deployment, address, access) as client:
        conversation = Conversation(client, _write, sampling, system)
        if sys.stdin.isatty():
            _interactive(conversation)
        else:
            _piped(conversation)


class ChatPiece(Protocol):
    """The part of an answer's piece that is shown."""

    @property
    def text_delta(self) -> str:
        """Text that follows what came before."""
        ...


class ChatClient(Protocol):
    """What a conversation needs of `tandem.client.Client`."""

    def chat(self, messages: Sequence[Mapping[str, str]], **sampling: Any) -> Generator[ChatPiece, None, None]:
        """One answer, in pieces; closing the generator cancels it."""
        ...


class Conversation:
    """The messages so far, and how the next answer is got."""

    def __init__(
        self, client: ChatClient, write: Callable[[str], None], sampling: Mapping[str, Any], system: str | None
    ) -> None:
        self._client = client
        self._write = write
        self._sampling = sampling
        self._opening = [_message("system", system)] if system else []
        self.messages = list(self._opening)

    def reset(self) -> None:
        """Forgets all but the system's message."""
        self.messages = list(self._opening)

    def say(self, text: str) -> None:
        """Asks and writes the answer. A KeyboardInterrupt ends the answer, which is kept as far as it came.

        TandemError: nothing of this turn is kept.
        """
        self.messages.append(_message("user", text))
        try:
            answer = self._stream()
        except TandemError:
            self.messages.pop()
            raise
        self.messages.append(_message("assistant", answer))

    def _stream(self) -> str:
        parts: list[str] = []
        with closing(self._client.chat(self.messages, **self._sampling)) as pieces:
            try:
                for piece in pieces:
                    parts.append(piece.text_delta)
                    self._write(piece.text_delta)
            except KeyboardInterrupt:
                self._write(" …")
        self._write("\n")
        return "".join(parts)


def _piped(conversation: Conversation) -> None:
    for line in text_stdin():
        if _obey(conversation, line.strip()):
            return


def _interactive(conversation: Conversation) -> None:
    click.echo(f"{RESET} forgets, {QUIT} or Ctrl-D leaves, Ctrl-C ends an answer.")
    while True:
        try:
            if _obey(conversation, input("> ").strip()):
                return
        except KeyboardInterrupt:
            click.echo()
        except EOFError:
            click.echo()
            return
        except TandemError as error:
            click.echo(f"Error: {error}", err=True)


def _obey(conversation: Conversation, line: str) -> bool:
    """Does what the line says; whether it was to leave."""
    if line == RESET:
        conversation.reset()
    elif line and line != QUIT:
        conversation.say(line)
    return line == QUIT


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _write(text: str) -> None:
    click.echo(text, nl=False)
