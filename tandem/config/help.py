"""Says in words what the configuration's fields are: for ``--help`` and for errors."""

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tandem.config.settings import SERVICES, CommonConfig

_NAMES: dict[Any, str] = {bool: "true or false", int: "an integer", float: "a number", str: "text", Path: "a path"}


def expectation(field: FieldInfo) -> str:
    """What a value of the field must be (``an integer, at least 1``)."""
    if get_origin(field.annotation) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(field.annotation))
    return ", ".join([_NAMES[field.annotation], *_bounds(field)])


def help_text(service: str) -> str:
    """Every key of the service: flag, environment variable, type, default and meaning."""
    kind = SERVICES[service]
    entries = [_entry(service, key, field) for key, field in kind.model_fields.items()]
    usage = f"usage: python -m services.{service}.main [--config FILE] [--KEY VALUE ...]"
    order = "A flag wins over the environment, and that over the file (--config FILE or TANDEM_CONFIG)."
    return "\n".join([usage, "", str(kind.__doc__), order, "", *entries])


def _entry(service: str, key: str, field: FieldInfo) -> str:
    section = "common" if key in CommonConfig.model_fields else service
    prefix = "TANDEM_" if section == "common" else f"TANDEM_{service.upper()}_"
    head = f"  --{key.replace('_', '-')}  ({expectation(field)}; default {_default(field)})"
    return f"{head}\n      {field.description}\n      [{section}] {key}, {prefix}{key.upper()}\n"


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is PydanticUndefined:
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    return str(default) or "empty"


def _bounds(field: FieldInfo) -> list[str]:
    bounds = [_bound(rule) for rule in field.metadata]
    return [bound for bound in bounds if bound]


def _bound(rule: Any) -> str:
    if isinstance(rule, annotated_types.Ge):
        return f"at least {rule.ge}"
    if isinstance(rule, annotated_types.Gt):
        return f"greater than {rule.gt}"
    if isinstance(rule, annotated_types.Le):
        return f"at most {rule.le}"
    if isinstance(rule, annotated_types.Lt):
        return f"less than {rule.lt}"
    return ""
