"""Published blocks of an imagined prompt: block n is named `key(n)` and holds the tokens 10 n, 10 n + 1 ..."""

from tandem.kv.store import KeyedBlock

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
