from tandem.kv.journal import BlockRemoved, CacheJournal


def removed(number: int) -> BlockRemoved:
    return BlockRemoved(bytes([number]))


def test_a_reader_gets_what_it_has_not_heard_in_order():
    journal = CacheJournal(capacity=4)
    for number in (1, 2, 3):
        journal.note(removed(number))
    assert journal.last_number == 3
    assert journal.after(0, 9) == (removed(1), removed(2), removed(3))
    assert journal.after(1, 1) == (removed(2),)
    assert journal.after(3, 9) == ()


def test_what_the_ring_holds_no_more_is_a_gap():
    journal = CacheJournal(capacity=4)
    for number in range(1, 8):
        journal.note(removed(number))
    assert journal.after(2, 9) is None
    assert journal.after(3, 9) == tuple(map(removed, (4, 5, 6, 7)))
    assert journal.after(8, 9) is None, "a number that was never given out is of another journal"


def test_listeners_hear_of_each_event():
    journal = CacheJournal(capacity=4)
    heard: list[int] = []
    journal.listen(lambda: heard.append(journal.last_number))
    journal.note(removed(1))
    journal.note(removed(2))
    assert heard == [1, 2]
