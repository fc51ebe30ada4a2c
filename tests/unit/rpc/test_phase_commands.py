"""Commands on their way to a phase: their order, what goes together, and what an end leaves."""

import asyncio

import pytest

from tandem.rpc import phase_commands
from tandem.rpc.codecs import command_to_decode, command_to_prefill, commands_from_proto
from tandem.rpc.phase_commands import PhaseCommands
from tandem.types import AbortSequence, SamplingSpec, SequenceSpec, StopSpec, Submit


@pytest.fixture(params=[command_to_prefill, command_to_decode])
def commands(request):
    return PhaseCommands(request.param)


def submit(lease_id, num_tokens=3):
    return Submit(SequenceSpec(lease_id, "r", tuple(range(num_tokens)), num_tokens, SamplingSpec(), StopSpec(5)))


async def taken(messages):
    """The commands of the next message."""
    async with asyncio.timeout(20):
        return list(commands_from_proto(await anext(messages)))


async def test_each_goes_alone_until_the_phase_says_that_it_takes_more(commands):
    messages = commands.messages()
    for lease_id in (1, 2):
        commands.put(submit(lease_id))
    assert await taken(messages) == [submit(1)]
    assert await taken(messages) == [submit(2)]


async def test_what_waits_goes_together_in_order(commands):
    commands.takes_more = True
    messages = commands.messages()
    told = [submit(1), AbortSequence(1), submit(2), AbortSequence(7), submit(3)]
    for command in told:
        commands.put(command)
    assert await taken(messages) == told
    commands.put(submit(4))
    assert await taken(messages) == [submit(4)], "nothing is told twice"


async def test_what_comes_while_nothing_waits_goes_at_once(commands):
    commands.takes_more = True
    messages = commands.messages()
    waiting = asyncio.ensure_future(taken(messages))
    await asyncio.sleep(0)
    assert not waiting.done()
    commands.put(submit(1))
    assert await waiting == [submit(1)]


async def test_a_message_is_bounded_and_one_command_alone_may_be_larger(commands, monkeypatch):
    room = 2 * command_to_prefill(submit(1, 60)).ByteSize() + 1
    monkeypatch.setattr(phase_commands, "MAX_GATHERED_BYTES", room)
    commands.takes_more = True
    messages = commands.messages()
    told = [submit(1, 60), submit(2, 60), submit(3, 60), submit(4, 2000), submit(5, 60)]
    for command in told:
        commands.put(command)
    came = [await taken(messages) for _ in range(4)]
    assert [command for message in came for command in message] == told
    assert [len(message) for message in came] == [2, 1, 1, 1]


async def test_nothing_goes_after_the_end(commands):
    messages = commands.messages()
    waiting = asyncio.ensure_future(anext(messages, None))
    await asyncio.sleep(0)
    commands.put(submit(1))
    commands.close()
    commands.put(submit(2))
    assert await waiting is None
    assert await anext(messages, None) is None


async def test_the_end_comes_also_when_nothing_was_told(commands):
    messages = commands.messages()
    waiting = asyncio.ensure_future(anext(messages, None))
    await asyncio.sleep(0)
    commands.close()
    assert await waiting is None
