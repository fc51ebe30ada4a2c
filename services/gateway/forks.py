"""Answers 1 and up of a request: each goes on from the prompt that answer 0 has computed, in a lease of its own."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from services.gateway.leases import LeaseKeeper
from services.gateway.requests import Request, Sequence, State
from services.gateway.reuse import PromptKv


class Forks:
    """Asks memd to share the prompt's blocks. Where it cannot, the answer computes its prompt itself."""

    def __init__(self, leases: LeaseKeeper, ready: Callable[[Sequence], None], settled: Callable[[], None]) -> None:
        """`ready` hears of each answer that waits for its turn now, `settled` of each question to memd that ended."""
        self._leases = leases
        self._ready = ready
        self._settled = settled
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: set[Sequence] = set()  # for which memd is asked

    def __bool__(self) -> bool:
        return bool(self._tasks)

    def start(self, request: Request, parent_lease_id: int) -> None:
        """For every answer that is held for it."""
        prompt_kv = request.sequences[0].prompt_kv
        for sibling in request.sequences[1:]:
            if sibling.state is State.HELD:
                self._held.add(sibling)
                self._spawn(self._fork(sibling, parent_lease_id, prompt_kv))

    def discard(self, request: Request) -> None:
        """It has ended or gone elsewhere: what memd answers yet is given back."""
        self._held.difference_update(request.sequences)

    async def _fork(self, sibling: Sequence, parent_lease_id: int, prompt_kv: PromptKv) -> None:
        arrival = sibling.arrival
        num_tokens = len(arrival.prompt_token_ids) - 1
        lease_id = await self._leases.fork(parent_lease_id, arrival.request_id, num_tokens)
        if sibling in self._held:
            self._held.remove(sibling)
            if lease_id is not None:
                sibling.fork(prompt_kv, lease_id)
            sibling.to(State.QUEUED)
            self._ready(sibling)
        elif lease_id is not None:
            self._leases.release(lease_id)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._settled()
