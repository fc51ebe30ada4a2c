"""Conversations: against transformers on the real template, and the sandbox's limits."""

from datetime import UTC, datetime

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from services.gateway.chat import ChatMessage, ChatTemplate
from tandem.errors import InvalidRequestError
from tandem.model.metadata import read_metadata

NOW = datetime(2026, 3, 4, tzinfo=UTC)
USER = ChatMessage("user", "Hi <b>there</b> & 'you' ")


def rendered(source, messages=(USER,), **special_tokens):
    return ChatTemplate(source, special_tokens, lambda: NOW).render(messages)


@pytest.fixture(scope="module")
def model(default_model_path):
    return read_metadata(str(default_model_path), default_model_path.parent)


@pytest.mark.parametrize(
    "turns",
    [
        [("user", "What is 2+2?")],
        [("system", "Be brief."), ("user", "Hello\n\nworld")],
        [("user", "a"), ("assistant", "b"), ("user", "<|im_end|> c {{ x }} ☃")],
        [("user", "")],
    ],
)
def test_the_real_template_renders_as_transformers_does(model, turns):
    special = {"bos_token": model.tokenizer.bos_token, "eos_token": model.tokenizer.eos_token}
    conversation = [{"role": role, "content": content} for role, content in turns]
    expected, _ = render_jinja_template(
        conversations=[conversation], chat_template=model.chat_template, add_generation_prompt=True, **special
    )
    ours = rendered(model.chat_template, [ChatMessage(*turn) for turn in turns], **special)
    assert ours == expected[0]
    assert "<|im_start|>" in ours


TEMPLATES = [
    "{% for m in messages %}\n  {% if m.role == 'user' %}\n[{{ m['content'] }}]\n  {% endif %}\n{% endfor %}",
    "{% for m in messages %}{% if loop.index0 > 3 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}",
    "{% if tools is not none %}tools{% endif %}{% if documents is not none %}documents{% endif %}x",
    "{% set ns = namespace(x=0) %}{% for m in messages %}{% set ns.x = ns.x + 1 %}{% endfor %}{{ ns.x }}",
]


@pytest.mark.parametrize("source", TEMPLATES)
def test_the_dialect_is_that_of_transformers(source):
    conversation = [{"role": USER.role, "content": USER.content}] * 2
    expected, _ = render_jinja_template(conversations=[conversation], chat_template=source)
    assert rendered(source, [USER, USER]) == expected[0]


def test_the_date_comes_from_the_clock():
    assert rendered("{{ strftime_now('%d %b %Y') }}") == "04 Mar 2026"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[5].content }}", "refuses"),
        ("{{ 1 / 0 }}", "refuses"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses"),
        ("{% for %}", "cannot be read"),
        (None, "no chat template"),
        ("", "no chat template"),
    ],
)
def test_what_goes_wrong_is_said_of_the_messages(source, problem):
    with pytest.raises(InvalidRequestError, match=problem) as caught:
        rendered(source)
    assert caught.value.field == "messages"


def test_empty_conversations_and_roles_are_refused():
    with pytest.raises(InvalidRequestError) as caught:
        rendered("x", [])
    assert caught.value.field == "messages"
    with pytest.raises(InvalidRequestError) as caught:
        rendered("x", [USER, ChatMessage("", "x")])
    assert caught.value.field == "messages[1].role"
