"""What a replica's phases have been sent and have not given an end of."""

from collections.abc import Iterator, Mapping

from services.gateway.load import Attempt
from services.gateway.ports import PhasePort
from services.gateway.prospects import Prospects
from services.gateway.requests import Sequence, State
from tandem.types import Phase


class Attempts:
    """By lease."""

    def __init__(self, ports: Mapping[Phase, PhasePort], prospects: Prospects) -> None:
        self._ports = ports
        self._prospects = prospects
        self._attempts: dict[int, Attempt] = {}
        self._ending: set[Phase] = set()  # connected, but they hand back what they are sent

    def __len__(self) -> int:
        return len(self._attempts)

    def __iter__(self) -> Iterator[Attempt]:
        return iter(self._attempts.values())

    def takes(self, phase: Phase) -> bool:
        """Whether there is sense in sending it sequences."""
        return self._ports[phase].connected and phase not in self._ending

    def note_ending(self, phase: Phase) -> None:
        """It hands back what it is sent, until it is connected anew."""
        self._ending.add(phase)

    def note_connected(self, phase: Phase) -> None:
        """It takes sequences."""
        self._ending.discard(phase)

    def begin(self, sequence: Sequence, phase: Phase, lease_id: int) -> None:
        """The phase gets it."""
        sequence.to(State.PREFILLING if phase is Phase.PREFILL else State.DECODING)
        self._attempts[lease_id] = Attempt(sequence, phase, sequence.num_tokens)
        self._prospects.sent(phase, sequence.num_tokens)
        self._ports[phase].submit(sequence.spec(lease_id))

    def sequence(self, lease_id: int) -> Sequence | None:
        """That goes on in that lease; None: nobody does, or it has gone on in another."""
        attempt = self._attempts.get(lease_id)
        return None if attempt is None or attempt.sequence.lease_id != lease_id else attempt.sequence

    def end(self, lease_id: int, *, is_prefilled: bool) -> Attempt | None:
        """The phase has it no more; None when it had not."""
        attempt = self._attempts.pop(lease_id, None)
        if attempt is not None:
            self._prospects.came_back(attempt.phase, attempt.num_tokens, is_prefilled)
        return attempt

    def abort(self, lease_id: int) -> bool:
        """Asks the phase that has it to let go; False when none has it."""
        attempt = self._attempts.get(lease_id)
        if attempt is None:
            return False
        self._ports[attempt.phase].abort(lease_id)
        return True
