import hashlib

from hypothesis import given
from hypothesis import strategies as st

from tandem.kv.contents import KEY_BYTES, block_keys, namespace

tokens = st.lists(st.integers(0, (1 << 32) - 1), max_size=40)
NAMESPACE = namespace(b"model", b"tenant")


def test_a_key_is_the_hash_of_what_comes_before_and_of_its_own_tokens():
    first = hashlib.sha256(NAMESPACE + bytes([1, 0, 0, 0, 2, 0, 0, 0])).digest()
    second = hashlib.sha256(first + bytes([3, 0, 0, 0, 0, 1, 0, 0])).digest()
    assert block_keys(NAMESPACE, [1, 2, 3, 256, 5], 2) == (first, second)
    assert len(first) == KEY_BYTES


@given(tokens, st.integers(1, 7), st.data())
def test_keys_go_on_from_a_block(token_ids, block_size, data):
    keys = block_keys(NAMESPACE, token_ids, block_size)
    assert len(keys) == len(token_ids) // block_size
    if keys:
        number = data.draw(st.integers(1, len(keys)))
        rest = token_ids[number * block_size :]
        assert block_keys(keys[number - 1], rest, block_size) == keys[number:]


@given(tokens, st.data())
def test_one_other_token_changes_its_key_and_all_after_it(token_ids, data):
    if not token_ids:
        return
    place = data.draw(st.integers(0, len(token_ids) - 1))
    others = [*token_ids]
    others[place] ^= 1
    pairs = zip(block_keys(NAMESPACE, token_ids, 3), block_keys(NAMESPACE, others, 3), strict=True)
    assert [one == other for one, other in pairs] == [
        (number + 1) * 3 <= place for number in range(len(token_ids) // 3)
    ]


def test_namespaces_differ_where_only_the_borders_of_their_parts_do():
    assert len({namespace(b"ab", b"c"), namespace(b"a", b"bc"), namespace(b"abc"), namespace(b"abc", b"")}) == 4
