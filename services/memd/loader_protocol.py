"""What memd and its loader, a child process, say to each other: one JSON object a line over a socket pair.

The loader sends its `LoadPlan`; memd answers with what `tandem.rpc.segments` says of the weight and the KV segment and,
beside that line, their descriptors; the loader fills them and sends `FILLED`. Instead of either, it may send a failure
and end.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from tandem import errors

FILLED = {"filled": True}


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """The model that the loader has opened."""

    model_name: str
    model_config_json: str
    manifest_json: str
    digest: str
    dtype: str
    kv_dtype: str
    free_bytes: int  # of the memory that the segments will take


def encode(message: dict[str, Any]) -> bytes:
    """One line."""
    return json.dumps(message).encode() + b"\n"


def encode_plan(plan: LoadPlan) -> bytes:
    """The loader's first line."""
    return encode({"plan": asdict(plan)})


def encode_failure(error: errors.TandemError) -> bytes:
    """The loader's last line when it could not go on."""
    return encode({"failure": {"error": type(error).__name__, "message": str(error)}})


def decode(line: bytes) -> dict[str, Any]:
    """A line of the loader. Raises the failure that it holds, as the ModelError that it was."""
    message: dict[str, Any] = json.loads(line)
    if "failure" in message:
        raise _failure(**message["failure"])
    return message


def decode_plan(message: dict[str, Any]) -> LoadPlan:
    """See `encode_plan`."""
    return LoadPlan(**message["plan"])


def _failure(error: str, message: str) -> errors.ModelError:
    kind = getattr(errors, error, None)
    if isinstance(kind, type) and issubclass(kind, errors.ModelError):
        return kind(message)
    return errors.ModelError(f"{error}: {message}")
