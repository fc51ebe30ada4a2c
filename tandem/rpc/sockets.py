"""Who may listen on a unix socket of the run directory: one process at a time, and nobody else's files."""

import errno
import fcntl
import os
import socket
import stat
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tandem.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SocketClaim:
    """The right to bind `path`, held through a locked file beside it until `release` or the process's end."""

    path: Path
    lock_fd: int

    def release(self) -> None:
        """Removes the socket file and gives the right up. The lock file stays: removing it would race."""
        self.path.unlink(missing_ok=True)
        os.close(self.lock_fd)


class Entry(Enum):
    """How a process comes to a socket's path."""

    ALONE = "alone"  # nobody else may be there
    SUCCESSOR = "successor"  # who is there has the claim until its end


class SocketPlace:
    """A path at which one server answers, and in its time another after it, with nobody missing in between.

    A server binds `binding`, a name of this process, and `occupy` moves that to the path in one go.
    """

    def __init__(self, path: Path, entry: Entry) -> None:
        """ConfigError as of `claim_socket`, which a successor calls when its predecessor has ended."""
        self._path = path
        self._lock_fd = claim_socket(path).lock_fd if entry is Entry.ALONE else None
        self._inode: int | None = None

    @property
    def binding(self) -> Path:
        """Short: run directories are checked for the length of `controller.sock`."""
        return self._path.with_name(f"{self._path.stem[:4]}.{os.getpid()}")

    def occupy(self) -> None:
        """Whoever connects from now on reaches the server that has bound `binding`; nobody but this user can."""
        self.binding.chmod(0o600)
        self._inode = self.binding.lstat().st_ino
        self.binding.replace(self._path)

    def try_claim(self) -> bool:
        """Whether the claim is this process's by now."""
        if self._lock_fd is None:
            try:
                self._lock_fd = _lock(self._path)
            except ConfigError:
                return False
        return True

    def release(self) -> None:
        """Gives the claim up, and removes the socket file unless a successor's is there."""
        self.binding.unlink(missing_ok=True)
        if self._path.exists() and self._path.lstat().st_ino == self._inode:
            self._path.unlink(missing_ok=True)
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None


def claim_socket(path: Path) -> SocketClaim:
    """Makes the run directory (0700) and clears a dead process's socket file away.

    ConfigError when the directory is somebody else's, when a live process has the socket, or when `path` is
    something that is no socket.
    """
    make_run_dir(path.parent)
    lock_fd = _lock(path)
    try:
        _clear(path)
    except BaseException:
        os.close(lock_fd)
        raise
    return SocketClaim(path, lock_fd)


def make_run_dir(run_dir: Path) -> None:
    """Open to this user alone. ConfigError when it cannot be made, or is somebody else's."""
    try:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = run_dir.stat().st_uid
    except OSError as error:
        raise ConfigError("run_dir", f"cannot be made: {error}") from error
    if owner != os.geteuid():
        raise ConfigError("run_dir", f"{run_dir} belongs to user {owner}, not to {os.geteuid()}; choose another")


def _lock(path: Path) -> int:
    lock_path = path.with_name(path.name + ".lock")
    try:
        lock_fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ConfigError("run_dir", f"cannot make {lock_path}: {error}") from error
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock_fd)
        raise _in_use(path) from error
    return lock_fd


def _clear(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError("run_dir", f"{path} is not a socket; move it away")
    if _answers(path):
        raise _in_use(path)
    path.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    """Whether somebody listens; a full backlog (EAGAIN) is a listener too."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(os.fspath(path)) not in (errno.ECONNREFUSED, errno.ENOENT)


def _in_use(path: Path) -> ConfigError:
    return ConfigError("run_dir", f"{path} is in use by a running process; stop it, or choose another run_dir")
