"""Whose KV a block may hold: what says whether it is wiped before a lease first uses it.

A block's occupant is the sharing domain (see `tandem.kv.contents.domain_of`) whose KV it last held, as far as that is
certain. It is once a lease's tokens in it are sealed: by then the step has run that wiped it, where it had to be, and
wrote it. From its grant until then nothing is certain: a phase may end before it has wiped it, or with something in it
that memd has not heard of. What is not certain is anybody's.

memd hears of a domain before anything is written for it. So while all leases were of one domain, that is the occupant
of whatever is not certain, and nobody has anything to wipe.

A kill in the middle of a store leaves a value that is no domain's, which is as good as anybody's.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tandem.errors import LeaseError
from tandem.kv.contents import DOMAIN_BYTES, domain_of
from tandem.kv.records import Array, LedgerRecords
from tandem.types import Block

NOBODYS = b""
ANYBODYS = b"\xff" * DOMAIN_BYTES


def domain_in(namespace: bytes, named: bytes = b"") -> bytes:
    """Of a sequence: by its namespace, or, where it has none, by name. Without either it is not even of its own."""
    return domain_of(namespace) if namespace else named or ANYBODYS


def check_domain(domain: bytes) -> None:
    """LeaseError when it neither is one nor empty: not known."""
    if len(domain) not in (0, DOMAIN_BYTES):
        raise LeaseError(f"a domain has {DOMAIN_BYTES} bytes, not {len(domain)}")


def must_wipe(occupant: bytes, domain: bytes) -> bool:
    """Whether a block is to be wiped before it is written for `domain`."""
    return occupant != NOBODYS and (occupant != domain or domain == ANYBODYS)


def entered(block: Block, domain: bytes) -> Block:
    """The block as its holder knows it once it may have been used for `domain`, wiped before or not."""
    if block.occupant == domain:
        return block
    return replace(block, occupant=domain if block.occupant == NOBODYS else ANYBODYS)


class Occupants:
    """A part of the `Ledger`, over its records."""

    def __init__(self, records: LedgerRecords) -> None:
        self.are_told = True  # otherwise every block is said to be nobody's
        self._of_blocks: Array = records.blocks["occupant"]
        self._of_leases: Array = records.leases["domain"]
        self._sole: Array = records.header["sole_domain"]  # [1, DOMAIN_BYTES]

    def open_lease(self, lease_slot: int, domain: bytes) -> None:
        """Before a lease exists: its sequence is of that domain; empty: of none that is known."""
        domain = domain or ANYBODYS
        self._of_leases[lease_slot] = _array(domain)
        sole = self._sole[0].tobytes()
        if sole != domain:
            self._sole[0] = _array(ANYBODYS if any(sole) else domain)

    def domain_of_lease(self, lease_slot: int) -> bytes:
        """As it was opened with."""
        domain: bytes = self._of_leases[lease_slot].tobytes()
        return domain

    def grant(self, block_id: int) -> bytes:
        """Before a block is given to a holder: who its occupant is, which is uncertain from now on."""
        occupant = self.of(block_id)
        self._of_blocks[block_id] = _array(ANYBODYS)
        return occupant

    def seal(self, block_ids: Sequence[int], lease_slot: int) -> None:
        """Tokens in these blocks of a lease are complete."""
        if block_ids:
            self._of_blocks[list(block_ids)] = self._of_leases[lease_slot]

    def of(self, block_id: int) -> bytes:
        """As a holder is told."""
        if not self.are_told:
            return NOBODYS
        occupant: bytes = self._of_blocks[block_id].tobytes()
        if occupant == ANYBODYS:
            occupant = self._sole[0].tobytes()
        return occupant if any(occupant) else NOBODYS


def _array(domain: bytes) -> Array:
    return np.frombuffer(domain, np.uint8)
