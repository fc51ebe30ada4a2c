"""Links between the services: each connects through one of ours to each of the others that it needs.

Nothing of the product knows of it. A small library that is loaded into every process (`redirect.c`) connects whoever
asks for a service's socket to the link instead, by the names that supervisord gives the processes. So the watchdog, the
command line and this harness, which have no link, go straight; so do the descriptors of memd's segments.
"""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.chaos.links import Link

PAIRS = (
    ("gateway", "prefill"),
    ("gateway", "decode"),
    ("gateway", "memd"),
    ("gateway", "controller"),
    ("prefill", "memd"),
    ("decode", "memd"),
    ("prefill", "controller"),
    ("decode", "controller"),
)
BETWEEN = tuple(f"{client}-{service}" for client, service in PAIRS)
SOURCE = Path(__file__).with_name("redirect.c")
NO_COMPILER = "no faults between the services: the library that leads them through links takes a C compiler (cc)"


class Redirection:
    """Links in a folder of their own, and the environment in which processes go through them."""

    def __init__(self, library: Path, folder: Path) -> None:
        self._library = library
        self._folder = folder

    @classmethod
    def built(cls, folder: Path) -> "Redirection | None":
        """In `folder`, which is made; None where there is no compiler."""
        compiler = shutil.which("cc")
        if compiler is None:
            return None
        folder.mkdir(mode=0o700)
        library = folder / "redirect.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
        return cls(library, folder)

    @property
    def environment(self) -> Mapping[str, str]:
        """Of supervisord, which hands it on."""
        return {"LD_PRELOAD": str(self._library), "CHAOS_LINKS": str(self._folder)}

    def links(self, run_dir: Path) -> dict[str, Link]:
        """One for each of `PAIRS`, by its name."""
        return {
            name: Link(run_dir / f"{service}.sock", self._folder / name)
            for name, (_, service) in zip(BETWEEN, PAIRS, strict=True)
        }
