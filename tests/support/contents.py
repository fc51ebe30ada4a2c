"""Published blocks of an imagined prompt: block n is named `key(n)` and holds the tokens 10 n, 10 n + 1 ..."""

from collections.abc import Sequence

from tandem.kv.contents import block_keys, domain_salt, segment_namespace, shared_namespace
from tandem.kv.store import KeyedBlock
from tandem.types import ContentKind

NAMESPACE = b"N" * 32


def key(number: int) -> bytes:
    """Of block `number`."""
    return bytes([number]) * 32


def block_tokens(number: int, block_size: int = 4) -> tuple[int, ...]:
    """What block `number` holds."""
    return tuple(range(10 * number, 10 * number + block_size))


def keyed(number: int, ordinal: int | None = None, block_size: int = 4) -> KeyedBlock:
    """Block `number`, which stands behind the one before it, at its own place in a lease unless told otherwise."""
    parent = key(number - 1) if number else NAMESPACE
    ordinal = number if ordinal is None else ordinal
    return KeyedBlock(ordinal, key(number), parent, NAMESPACE, block_tokens(number, block_size))


def prompts_of(domain: str, client_salt: str = "") -> bytes:
    """The namespace of a sharing domain's prompts."""
    return shared_namespace(("model",), client_salt, domain_salt(b"secret", domain))


def entry(domain: str, token_ids: Sequence[int], client_salt: str = "") -> tuple[KeyedBlock, ...]:
    """A segment's blocks under their real keys."""
    return keyed_run(segment_namespace(prompts_of(domain, client_salt)), token_ids, ContentKind.SEGMENT)


def keyed_run(
    namespace: bytes, token_ids: Sequence[int], kind: ContentKind = ContentKind.PROMPT, block_size: int = 4
) -> tuple[KeyedBlock, ...]:
    """All whole blocks of the tokens under their real keys."""
    keys = block_keys(namespace, token_ids, block_size)
    starts = range(0, block_size * len(keys), block_size)
    return tuple(
        KeyedBlock(ordinal, own, parent, namespace, tuple(token_ids[start : start + block_size]), kind)
        for ordinal, (own, parent, start) in enumerate(zip(keys, (namespace, *keys[:-1]), starts, strict=True))
    )
