"""Where the two phases' processes meet to take turns: files of the run directory that outlive nobody's claim.

`turns` holds both accounts; whoever reads or writes them holds its lock, for microseconds. Each phase holds the lock of
its own `turns.<phase>` from start to end, so that the kernel tells its peer of its death, SIGKILL included: the account
of a dead phase counts for nothing, its turn is over. A fifo for each phase wakes it when its peer's turn ends.
"""

import fcntl
import mmap
import os
import select
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tandem.clock import Clock
from tandem.device.timeshare.policy import Account, Stage, ask, end, turn_from_s
from tandem.errors import DeviceError
from tandem.types import Phase

PATIENCE_S = 0.05  # a peer that dies rings no bell: who waits looks again this often
CLAIM_TRIES = 100  # the peer's look at whether we live takes the claim for an instant
CLAIM_RETRY_S = 0.002
_RECORD = struct.Struct("<Bdd")  # stage, had_s, left_s
_PEER = {Phase.PREFILL: Phase.DECODE, Phase.DECODE: Phase.PREFILL}
_PLACE = {Phase.PREFILL: 0, Phase.DECODE: _RECORD.size}


class Seat:
    """One phase's, from its making until `close` or the process's end. Used by one thread at a time."""

    def __init__(self, run_dir: Path, phase: Phase, clock: Clock) -> None:
        """`clock` is the machine's monotonic one. DeviceError when the phase's seat is taken, or there is no place."""
        self._phase, self._peer = phase, _PEER[phase]
        self._clock = clock
        self._descriptors: list[int] = []
        try:
            self._claim = self._open(run_dir / f"turns.{phase}")
            self._peer_claim = self._open(run_dir / f"turns.{self._peer}")
            self._table = self._open(run_dir / "turns")
            self._bell = self._open_bell(run_dir / f"turns.{phase}.bell")
            self._peer_bell = self._open_bell(run_dir / f"turns.{self._peer}.bell")
            os.ftruncate(self._table, 2 * _RECORD.size)
            self._accounts = mmap.mmap(self._table, 2 * _RECORD.size)
            self._sit_down(run_dir)
        except OSError as error:
            self._close_descriptors()
            raise DeviceError(f"cannot take turns in {run_dir}: {error.strerror}") from error

    def wait(self) -> None:
        """Returns when it is this phase's turn."""
        with self._locked():
            self._write(ask(self._read(self._phase), self._peer_account(), self._clock.now()))
        while (remaining_s := self._try()) > 0:
            self._listen(min(remaining_s, PATIENCE_S))

    def leave(self, turn_s: float, percent: int) -> None:
        """The turn is over; it took `turn_s` and counts against a share of `percent`."""
        with self._locked():
            self._write(end(self._read(self._phase), turn_s, percent, self._clock.now()))
        with suppress(BlockingIOError):  # the fifo is full: it has been rung
            os.write(self._peer_bell, b"\0")

    def close(self) -> None:
        """Gives the seat up; the peer is alone from now on."""
        self._accounts.close()
        self._close_descriptors()

    def _try(self) -> float:
        """What is left to wait; from 0 on this phase is the one that runs."""
        with self._locked():
            own = self._read(self._phase)
            remaining_s = turn_from_s(own, self._peer_account()) - self._clock.now()
            if remaining_s <= 0:
                self._write(own.enter(Stage.RUNNING))
        return remaining_s

    def _sit_down(self, run_dir: Path) -> None:
        """Makes the claim, then a new account: what a dead process of this phase had is forgotten."""
        for _ in range(CLAIM_TRIES):
            with suppress(BlockingIOError):
                fcntl.flock(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(CLAIM_RETRY_S)
        else:
            self.close()
            raise DeviceError(f"another process takes {self._phase}'s turns in {run_dir}")
        with self._locked():
            self._write(Account().enter(Stage.AWAY))

    def _peer_account(self) -> Account:
        return self._read(self._peer) if self._peer_lives() else Account()

    def _peer_lives(self) -> bool:
        try:
            fcntl.flock(self._peer_claim, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._peer_claim, fcntl.LOCK_UN)
        return False

    def _read(self, phase: Phase) -> Account:
        stage, had_s, left_s = _RECORD.unpack_from(self._accounts, _PLACE[phase])
        return Account(Stage(stage), had_s, left_s)

    def _write(self, account: Account) -> None:
        _RECORD.pack_into(self._accounts, _PLACE[self._phase], account.stage, account.had_s, account.left_s)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._table, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._table, fcntl.LOCK_UN)

    def _listen(self, timeout_s: float) -> None:
        readable, _, _ = select.select([self._bell], [], [], timeout_s)
        if readable:
            os.read(self._bell, mmap.PAGESIZE)

    def _open(self, path: Path, flags: int = os.O_CREAT) -> int:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
        self._descriptors.append(descriptor)
        return descriptor

    def _open_bell(self, path: Path) -> int:
        with suppress(FileExistsError):
            os.mkfifo(path, 0o600)
        return self._open(path, os.O_NONBLOCK)

    def _close_descriptors(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
