"""A disk for the logs that can be full: a small tmpfs. Mounting one needs root; without it there is none."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Self

SIZE = "128m"
CHUNK_BYTES = 1 << 20
FILLER = "filler"
NO_DISK = "no full disks: mounting a tmpfs for the logs needs root"


class LogDisk:
    """Mounted at `folder`."""

    def __init__(self, folder: Path) -> None:
        self._filler = folder / FILLER

    @classmethod
    @contextlib.contextmanager
    def mounted(cls, folder: Path) -> Iterator[Self | None]:
        """None where nothing can be mounted."""
        folder.mkdir(parents=True, mode=0o700)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=700", "tandem-chaos", str(folder)]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            yield None
            return
        try:
            yield cls(folder)
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)

    def fill(self) -> None:
        """To the last byte."""
        with contextlib.suppress(OSError), self._filler.open("ab", buffering=0) as filler:
            for size in (CHUNK_BYTES, 4096, 1):
                with contextlib.suppress(OSError):
                    while filler.write(b"\0" * size):
                        pass

    def free(self) -> None:
        """There is room again."""
        self._filler.unlink(missing_ok=True)
