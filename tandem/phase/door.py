"""Where a gateway's stream meets the engine, which is there only between attaching and draining."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Generic

from tandem.errors import NotReadyError
from tandem.phase.engine import StreamEnd
from tandem.phase.session import ResultT, Session
from tandem.types import PhaseCommand


class Door(Generic[ResultT]):
    """Shut until an engine stands behind it."""

    def __init__(self) -> None:
        self._engine: StreamEnd[ResultT] | None = None

    def open(self, engine: StreamEnd[ResultT]) -> None:
        """Streams are let in."""
        self._engine = engine

    def shut(self) -> None:
        """New streams are refused; those that are in stay."""
        self._engine = None

    async def converse(self, commands: AsyncIterator[PhaseCommand | None]) -> AsyncGenerator[ResultT, None]:
        """A whole stream: feeds its commands to the engine and yields the results, one a step.

        It ends when the commands end or the engine closes the session, and then lets go of the stream's sequences.
        NotReadyError: waiting for memd, or draining. DuplicateRequestError as of the engine.
        """
        if self._engine is None:
            raise NotReadyError("the phase is waiting for memd or about to end")
        engine = self._engine
        session = engine.open_session()
        reader = asyncio.get_running_loop().create_task(_feed(engine, session, commands))
        try:
            async for result in session.results():
                yield result
            if reader.done():
                reader.result()
        finally:
            reader.cancel()
            engine.close_session(session)


async def _feed(
    engine: StreamEnd[ResultT], session: Session[ResultT], commands: AsyncIterator[PhaseCommand | None]
) -> None:
    try:
        async for command in commands:
            if command is not None:
                engine.command(session, command)
    finally:
        session.close()
