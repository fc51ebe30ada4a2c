from types import SimpleNamespace

import pytest

from tandem.cli.chat import Conversation
from tandem.errors import QueueFullError


class FakeClient:
    """Answers "you said: X" word by word; `trouble` is raised after the first word."""

    def __init__(self, trouble=None):
        self.trouble = trouble
        self.asked = []
        self.num_closed = 0

    def chat(self, messages, **sampling):
        self.asked.append(([dict(message) for message in messages], sampling))
        return self._pieces(messages[-1]["content"])

    def _pieces(self, text):
        try:
            yield SimpleNamespace(text_delta="you ")
            if self.trouble is not None:
                raise self.trouble
            yield SimpleNamespace(text_delta=f"said: {text}")
        finally:
            self.num_closed += 1


def conversation(client, system=None, **sampling):
    written = []
    return Conversation(client, written.append, sampling, system), written


def test_the_conversation_is_sent_whole_with_its_sampling():
    client = FakeClient()
    talk, written = conversation(client, system="be kind", temperature=0.5)
    talk.say("a")
    talk.say("b")
    messages, sampling = client.asked[-1]
    assert [(message["role"], message["content"]) for message in messages] == [
        ("system", "be kind"), ("user", "a"), ("assistant", "you said: a"), ("user", "b"),
    ]  # fmt: skip
    assert sampling == {"temperature": 0.5}
    assert "".join(written) == "you said: a\nyou said: b\n"


def test_reset_keeps_only_the_system_message():
    client = FakeClient()
    talk, _ = conversation(client, system="be kind")
    talk.say("a")
    talk.reset()
    assert [message["role"] for message in talk.messages] == ["system"]


def test_an_interrupt_cancels_the_answer_and_keeps_what_came():
    client = FakeClient(KeyboardInterrupt())
    talk, written = conversation(client)
    talk.say("a")
    assert client.num_closed == 1
    assert talk.messages[-1] == {"role": "assistant", "content": "you "}
    assert written[-1] == "\n"


def test_a_refused_turn_is_not_kept():
    talk, _ = conversation(FakeClient(QueueFullError("full", 1.0)))
    with pytest.raises(QueueFullError):
        talk.say("a")
    assert talk.messages == []
