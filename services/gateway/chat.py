"""Conversations as prompts, through the model's own template (Jinja, in the dialect of Hugging Face models)."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tandem.errors import InvalidRequestError

FIELD = "messages"


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn."""

    role: str
    content: str


class ChatTemplate:
    """A model's template, compiled once. It runs sandboxed: a model's files are not to be trusted with more.

    A bad template stops no gateway, since the model can still generate: conversations are refused.
    """

    def __init__(self, source: str | None, special_tokens: Mapping[str, str], now: Callable[[], datetime]) -> None:
        self._special_tokens = dict(special_tokens)
        self._now = now
        self._problem = "" if source else "the model has no chat template; send a text prompt to Generate"
        self._template: jinja2.Template | None = None
        if source:
            try:
                self._template = _environment().from_string(source)
            except jinja2.TemplateError as error:
                self._problem = f"the model's chat template cannot be read: {error}"

    @property
    def usable(self) -> bool:
        """Whether conversations can be rendered."""
        return self._template is not None

    def render(self, messages: Sequence[ChatMessage], at: datetime | None = None) -> str:
        """The prompt up to where the assistant's answer begins, as of `at`, for templates that name the day; or now.

        InvalidRequestError, naming what is wrong.
        """
        if self._template is None:
            raise InvalidRequestError(FIELD, self._problem)
        _check(messages)
        try:
            return self._template.render(
                messages=[asdict(message) for message in messages],
                add_generation_prompt=True,
                tools=None,
                documents=None,
                strftime_now=(at or self._now()).strftime,
                **self._special_tokens,
            )
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise InvalidRequestError(FIELD, f"the model's chat template refuses them: {error}") from error


def _check(messages: Sequence[ChatMessage]) -> None:
    if not messages:
        raise InvalidRequestError(FIELD, "is empty; send at least one message")
    for number, message in enumerate(messages):
        if not message.role:
            raise InvalidRequestError(f"{FIELD}[{number}].role", "is empty; use system, user or assistant")


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    """Jinja's own filter escapes HTML characters, which are no danger to a language model."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
