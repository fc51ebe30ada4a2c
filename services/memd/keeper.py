"""The keeper: a process that holds memd's segments while memd itself is away, and does nothing else.

``python -m services.memd.keeper --socket PATH``. It never maps what it holds and makes no call to a device's driver, so
there is little in it that could fail. One request a connection, of the same user: a line of JSON that says what to
``do`` (see `Verb`), answered by ``{"epoch": N, ...}`` with the description of what is held now. What is no request
closes its connection without an answer. Each connection has a thread, so that one that says nothing delays nobody.
"""

import argparse
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import structlog

from services.memd.handles import RefusedError, refuse_others
from tandem.clock import Clock, MonotonicClock
from tandem.errors import ConfigError, DeviceError
from tandem.rpc.ending import end_process
from tandem.rpc.segments import MAX_FDS, ReceivedSegment, close_segments, describe_segments, read_segments, receive
from tandem.rpc.sockets import claim_socket
from tandem.telemetry.logs import configure_logging

NO_EPOCH = 0
MAX_REQUEST_BYTES = 1 << 16
REQUEST_TIMEOUT_S = 5.0  # from the connection to the end of the line
MAX_CONNECTIONS = 32  # at once; who comes then waits
ACCEPT_RETRY_S = 0.1
EXIT_USAGE = 2

_log = structlog.get_logger()


class Verb(StrEnum):
    """What can be asked of a keeper."""

    DEPOSIT = "deposit"  # an epoch's segments, their descriptors beside the line, in place of whatever was held
    LOOK = "look"  # nothing but the answer
    WITHDRAW = "withdraw"  # duplicates of the descriptors come beside the answer; the keeper holds on to its own
    FORGET = "forget"  # an epoch's segments; those of another epoch stay


@dataclass(frozen=True, slots=True)
class Request:
    """One line of a client. `epoch` and `segments`: see `Verb`."""

    verb: Verb
    epoch: int
    segments: tuple[ReceivedSegment, ...]


class Keeper:
    """The segments of one epoch of memd's; owns their descriptors. For several threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # what is held, until the answer that says so is sent
        self._epoch = NO_EPOCH
        self._segments: tuple[ReceivedSegment, ...] = ()

    def serve(self, connection: socket.socket) -> None:
        """One request. RefusedError: it was none, and nothing is changed. OSError: its sender is gone or slow."""
        refuse_others(connection)
        request = read_request(connection, self._clock)
        connection.setblocking(False)  # an answer is short: who has no room for it reads nothing
        with self._lock:
            self._do(request)
            self._answer(connection, request)

    def _answer(self, connection: socket.socket, request: Request) -> None:
        answer = json.dumps({"epoch": self._epoch, **describe_segments(self._segments)}).encode() + b"\n"
        fds = [segment.fd for segment in self._segments] if request.verb is Verb.WITHDRAW else []
        socket.send_fds(connection, [answer], fds)

    def _do(self, request: Request) -> None:
        if request.verb is Verb.DEPOSIT:
            self._replace(request.epoch, request.segments)
        elif request.verb is Verb.FORGET and request.epoch == self._epoch:
            self._replace(NO_EPOCH, ())

    def _replace(self, epoch: int, segments: tuple[ReceivedSegment, ...]) -> None:
        close_segments(self._segments)
        self._epoch, self._segments = epoch, segments
        _log.info("keeper.holds", epoch=epoch, segments=[segment.name for segment in segments])


def read_request(connection: socket.socket, clock: Clock) -> Request:
    """RefusedError, with every descriptor that came closed, when it is none. OSError: it does not come in time."""
    line, fds = bytearray(), list[int]()
    deadline_s = clock.now() + REQUEST_TIMEOUT_S
    try:
        while not line.endswith(b"\n"):
            connection.settimeout(max(0.0, deadline_s - clock.now()))
            part, part_fds = receive(connection, MAX_REQUEST_BYTES)
            fds += part_fds
            line += part
            if not part or len(line) > MAX_REQUEST_BYTES or len(fds) > MAX_FDS:
                raise RefusedError(f"no request in {len(line)} bytes with {len(fds)} descriptors")
        return parse_request(bytes(line), fds)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def parse_request(line: bytes, fds: Sequence[int]) -> Request:
    """RefusedError when that is not what `line` and `fds` are; closes nothing."""
    with suppress(ValueError, KeyError, TypeError, RecursionError, DeviceError):
        said = json.loads(line)
        verb, epoch = Verb(said["do"]), said["epoch"]
        segments = tuple(read_segments(line, fds).values()) if verb is Verb.DEPOSIT else ()
        if type(epoch) is int and len(segments) == len(fds) and bool(segments) == (verb is Verb.DEPOSIT):
            return Request(verb, epoch, segments)
    raise RefusedError(f"not a request: {line[:80]!r} with {len(fds)} descriptors")


def run(path: Path, ended: socket.socket) -> None:
    """Until something comes over `ended`. ConfigError when a running process has the socket."""
    claim = claim_socket(path)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(os.fspath(path))
            path.chmod(0o600)
            listener.listen()
            listener.setblocking(False)  # `accept` must not wait: no signal would end that
            _log.info("keeper.listening", path=str(path))
            serve_until(ended, listener, Keeper(MonotonicClock()))
    finally:
        claim.release()


def serve_until(ended: socket.socket, listener: socket.socket, keeper: Keeper) -> None:
    """Each connection in its thread, until something comes over `ended`, which no moment of arrival can hide."""
    room = threading.Semaphore(MAX_CONNECTIONS)
    while ended not in select.select([listener, ended], [], [])[0]:
        room.acquire()
        try:
            connection, _ = listener.accept()
            threading.Thread(target=_serve, args=(keeper, connection, room), daemon=True).start()
        except (OSError, RuntimeError) as error:  # out of descriptors or threads, or the peer gave up
            room.release()
            _log.warning("keeper.not_accepted", error=str(error))
            time.sleep(ACCEPT_RETRY_S)


def _serve(keeper: Keeper, connection: socket.socket, room: threading.Semaphore) -> None:
    with connection:
        try:
            keeper.serve(connection)
        except (RefusedError, OSError) as error:
            _log.warning("keeper.refused", reason=str(error))
        finally:
            room.release()


def main(argv: Sequence[str]) -> int:
    """Keeps until SIGTERM; the exit status. What it holds ends with it, unless somebody else holds it too."""
    parser = argparse.ArgumentParser(prog="services.memd.keeper")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--log-level", default="info")
    flags = parser.parse_args(argv)
    configure_logging("memd.keeper", flags.log_level)
    with _sigterm() as ended:
        try:
            run(flags.socket, ended)
        except ConfigError as error:
            _log.error("keeper.failed", message=str(error))
            return EXIT_USAGE
    return 0


@contextmanager
def _sigterm() -> Iterator[socket.socket]:
    """What becomes readable at SIGTERM.

    A handler of Python's would not run while `accept` waits, if the signal came between the last look for one and the
    call.
    """
    ended, notify = socket.socketpair()
    with ended, notify:
        notify.setblocking(False)
        signal.set_wakeup_fd(notify.fileno())
        signal.signal(signal.SIGTERM, lambda *_: None)
        yield ended
        signal.set_wakeup_fd(-1)


if __name__ == "__main__":
    end_process(main(sys.argv[1:]))
