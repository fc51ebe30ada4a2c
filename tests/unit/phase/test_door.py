import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from tandem.errors import DuplicateRequestError, NotReadyError
from tandem.phase.door import Door
from tandem.phase.session import Outbox, Session
from tandem.types import AbortSequence, DecodeResult, DropReason, PhaseCommand, SequenceDropped, SequenceOutput


class EchoEngine:
    """Answers each abort with a drop; refuses lease 13."""

    def __init__(self) -> None:
        self.closed: list[Session[DecodeResult]] = []
        self.sessions: list[Session[DecodeResult]] = []

    def open_session(self) -> Session[DecodeResult]:
        self.sessions.append(Session())
        return self.sessions[-1]

    def command(self, session: Session[DecodeResult], command: PhaseCommand) -> None:
        assert isinstance(command, AbortSequence)
        if command.lease_id == 13:
            raise DuplicateRequestError("13")
        session.put(DecodeResult(dropped=(SequenceDropped(command.lease_id, DropReason.ABORTED),)))

    def close_session(self, session: Session[DecodeResult]) -> None:
        session.close()
        self.closed.append(session)


async def commands(*lease_ids: int, stay: bool = False) -> AsyncIterator[PhaseCommand | None]:
    yield None
    for lease_id in lease_ids:
        yield AbortSequence(lease_id)
    if stay:
        await asyncio.Event().wait()


def open_door() -> tuple[Door[DecodeResult], EchoEngine]:
    door: Door[DecodeResult] = Door()
    engine = EchoEngine()
    door.open(engine)
    return door, engine


async def test_commands_go_in_and_results_come_out_until_the_commands_end() -> None:
    door, engine = open_door()
    dropped = [result.dropped[0].lease_id async for result in door.converse(commands(1, 2))]
    assert dropped == [1, 2]
    assert engine.closed == engine.sessions


async def test_a_stream_that_is_cut_lets_go_of_its_session() -> None:
    door, engine = open_door()
    async with aclosing(door.converse(commands(1, stay=True))) as results:
        await anext(results)
        assert engine.closed == []
    assert engine.closed == engine.sessions


async def test_the_engine_can_end_the_stream() -> None:
    door, engine = open_door()
    results = door.converse(commands(1, stay=True))
    await anext(results)
    engine.sessions[0].close()
    assert [result async for result in results] == []


async def test_a_refused_command_ends_the_stream_with_its_error() -> None:
    door, engine = open_door()
    with pytest.raises(DuplicateRequestError):
        async for _ in door.converse(commands(1, 13)):
            pass
    assert engine.closed == engine.sessions


async def test_a_shut_door_refuses() -> None:
    door, _ = open_door()
    door.shut()
    with pytest.raises(NotReadyError):
        await anext(door.converse(commands()))


async def test_a_message_a_session_holds_everything_said_to_it() -> None:
    outbox: Outbox[SequenceOutput, DecodeResult] = Outbox(DecodeResult)
    first: Session[DecodeResult] = Session()
    second: Session[DecodeResult] = Session()
    outbox.say(first, SequenceOutput(1, 5))
    outbox.say_dropped(first, SequenceDropped(2, DropReason.PREEMPTED))
    outbox.say(second, SequenceOutput(3, 6))
    outbox.deliver()
    outbox.deliver()
    for session in (first, second):
        session.close()
        session.put(DecodeResult())
    assert [result async for result in first.results()] == [
        DecodeResult((SequenceOutput(1, 5),), (SequenceDropped(2, DropReason.PREEMPTED),))
    ]
    assert [result async for result in second.results()] == [DecodeResult((SequenceOutput(3, 6),))]
