"""Makes the Python stubs of every .proto file: ``python protos/generate.py [--check]``.

Output goes to ``tandem/rpc/stubs/<area>/v1``. Files keep their registered names (``tandem/<area>/v1/x.proto``),
so reflection and other languages see the real packages; only the Python import lines are rewritten to where the
stubs lie. ``--check`` writes nothing and fails when a committed stub differs from what its proto makes.
"""

import filecmp
import os
import re
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
STUBS = ROOT / "tandem" / "rpc" / "stubs"
IMPORT = re.compile(r"\btandem\.(\w+)\.v1\b(?=( import|\.\w+_pb2))")


def generate(target: Path) -> None:
    """Writes all stubs below `target`, laid out as below ``tandem/rpc/stubs``."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
        include = files("grpc_tools") / "_proto"
        subprocess.run(
            [
                sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", f"-I{include}",
                f"--python_out={out}", f"--grpc_python_out={out}",
                f"--mypy_out=quiet:{out}", f"--mypy_grpc_out=quiet:{out}",
                *sources,
            ],
            check=True,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        )  # fmt: skip
        for path in sorted(out.rglob("*.py*")):
            place = target / path.relative_to(out / "tandem")
            place.parent.mkdir(parents=True, exist_ok=True)
            text = IMPORT.sub(r"tandem.rpc.stubs.\1.v1", path.read_text())
            place.write_text(text)
    for folder in [target, *(path for path in target.rglob("*") if path.is_dir())]:
        (folder / "__init__.py").touch()


def stale(fresh: Path) -> list[str]:
    """Names of stubs that differ between `fresh` and the committed ones, in either direction."""
    made = {str(p.relative_to(fresh)) for p in fresh.rglob("*.py*")}
    have = {str(p.relative_to(STUBS)) for p in STUBS.rglob("*.py*") if "__pycache__" not in p.parts}
    changed = {name for name in made & have if not filecmp.cmp(fresh / name, STUBS / name, shallow=False)}
    return sorted((made ^ have) | changed)


def main() -> int:
    """Generates, or with ``--check`` compares; returns the exit status."""
    if "--check" not in sys.argv[1:]:
        generate(STUBS)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        names = stale(Path(scratch))
    if names:
        print("Stubs are not up to date, run `make stubs`:", *names, sep="\n  ")
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
