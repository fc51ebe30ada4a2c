"""Random values: nothing is handed out twice, and how much is drawn at a time changes nothing."""

import itertools

from services.gateway import entropy
from services.gateway.entropy import Entropy


def numbered(drawn):
    """Words of four bytes that tell where they stand: 0, 1, 2, ... over all draws."""
    count = itertools.count()

    def draw(num_bytes):
        drawn.append(num_bytes)
        return b"".join(next(count).to_bytes(4) for _ in range(num_bytes // 4))

    return draw


def test_no_byte_is_handed_out_twice():
    drawn: list[int] = []
    source = Entropy(numbered(drawn))
    sizes = [8, 8, 16] * 200
    taken = [source.take(size) for size in sizes]
    assert [len(each) for each in taken] == sizes
    assert len(drawn) == -(-sum(sizes) // entropy.DRAWN_BYTES), "few draws"
    words = [each[at : at + 4] for each in taken for at in range(0, len(each), 4)]
    assert len(set(words)) == len(words)


def test_what_is_left_of_a_draw_is_not_mixed_with_the_next(monkeypatch):
    monkeypatch.setattr(entropy, "DRAWN_BYTES", 20)
    source = Entropy(numbered([]))
    words = [number.to_bytes(4) for number in range(10)]
    assert source.take(16) == b"".join(words[:4])
    assert source.take(16) == b"".join(words[5:9])


def test_numbers_have_their_bits():
    source = Entropy(lambda num_bytes: b"\xff" * num_bytes)
    assert source.number(63) == 2**63 - 1
    assert source.number(64) == 2**64 - 1


def test_the_system_is_asked():
    first, second = Entropy(), Entropy()
    assert {first.number(64) for _ in range(1000)}.isdisjoint({second.number(64) for _ in range(1000)})
    assert len({first.take(16) for _ in range(1000)}) == 1000
