"""Blocks by what they hold: content keys, and which published blocks may be given away first.

A key names a block's tokens together with all tokens before them and the namespace they were computed in, so that equal
keys mean equal keys and values. Another namespace makes every key another one: that is what keeps tenants apart.
"""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from tandem.kv.domain_blocks import DomainBlocks

KEY_BYTES = 32
DOMAIN_BYTES = 16  # at a namespace's end


def namespace(*parts: bytes) -> bytes:
    """Of everything that the contents depend on beside the tokens; no two lists of parts have the same."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def domain_salt(secret: bytes, domain: str) -> bytes:
    """What keeps a sharing domain's contents apart from all others'; nobody without the server's secret can name it."""
    return hmac.digest(secret, domain.encode(), hashlib.sha256)


def shared_namespace(contents: Sequence[str], client_salt: str, salt: bytes = b"") -> bytes:
    """Of whoever may share KV, whole blocks and segments alike.

    `contents` is what KV depends on beside the tokens; `salt` is the sharing domain's (see `domain_salt`), empty where
    there are no domains; the client's own only divides its domain further. All namespaces of a domain end alike
    (`domain_of`).
    """
    parts = [part.encode() for part in (*contents, client_salt)]
    return _in_domain(namespace(*parts, salt), namespace(b"domain", salt))


def sharing_domain(salt: bytes) -> bytes:
    """What `domain_of` says of all namespaces with that salt."""
    return domain_of(namespace(b"domain", salt))


def segment_namespace(prompts: bytes) -> bytes:
    """Of the segments' entries beside a namespace of prompts, in its domain; no prompt has it."""
    return _in_domain(namespace(b"segments", prompts), prompts)


def domain_of(space: bytes) -> bytes:
    """What tells the domain that a namespace belongs to from others; nothing follows from it."""
    return space[-DOMAIN_BYTES:]


def _in_domain(digest: bytes, domain: bytes) -> bytes:
    return digest[:-DOMAIN_BYTES] + domain_of(domain)


def block_keys(start: bytes, token_ids: Sequence[int], block_size: int) -> tuple[bytes, ...]:
    """Keys of the full blocks of `token_ids`; `start` is the namespace, or the key of the block before the first."""
    if len(token_ids) < block_size:
        return ()
    tokens = np.asarray(token_ids, dtype="<u4")
    keys: list[bytes] = []
    for end in range(block_size, len(tokens) + 1, block_size):
        start = hashlib.sha256(start + tokens[end - block_size : end].tobytes()).digest()
        keys.append(start)
    return tuple(keys)


@dataclass(slots=True)
class ContentIndex:
    """Published blocks by key and by what comes before them, and by the domain whose they are.

    Of two blocks with equal contents one is published. What is in no lease is idle: within a domain it goes in the
    order of leaving the last lease, the end of a sequence before its beginning, which more others can share. Pinned
    blocks are never idle. `segments` has what is of segments once more, in the same order.
    """

    block_ids: dict[bytes, int] = field(default_factory=dict)
    children: dict[bytes, dict[int, None]] = field(default_factory=dict)  # by the key before; the newest are last
    blocks: DomainBlocks[int] = field(default_factory=DomainBlocks)
    segments: DomainBlocks[int] = field(default_factory=DomainBlocks)
    num_pinned: int = 0

    def add(self, block_id: int, parent: bytes, key: bytes, domain: bytes) -> None:
        """It is published from now on."""
        self.block_ids[key] = block_id
        self.children.setdefault(parent, {})[block_id] = None
        self.blocks.add(block_id, domain)

    def keep(self, block_id: int) -> None:
        """It may be given up, after all others of its domain."""
        self.blocks.keep(block_id)
        self.segments.keep(block_id)

    def use(self, block_id: int) -> None:
        """It may not be given up."""
        self.blocks.use(block_id)
        self.segments.use(block_id)

    def renew(self, block_id: int) -> None:
        """If it may be given up, then after all others of its domain."""
        if self.blocks.is_idle(block_id):
            self.keep(block_id)

    def discard(self, block_id: int, parent: bytes, key: bytes) -> None:
        """It is published no more."""
        self.blocks.discard(block_id)
        self.segments.discard(block_id)
        del self.block_ids[key]
        del self.children[parent][block_id]
        if not self.children[parent]:
            del self.children[parent]

    def run(self, keys: Sequence[bytes]) -> list[int]:
        """The blocks of the first keys, as far as they are published."""
        found: list[int] = []
        for key in keys:
            block_id = self.block_ids.get(key)
            if block_id is None:
                break
            found.append(block_id)
        return found

    def newest_children(self, parent: bytes, most: int) -> list[int]:
        """Up to `most` of the blocks that follow the one of key `parent`, or that begin the namespace `parent`."""
        return list(islice(reversed(self.children.get(parent, {})), most))
