from hypothesis import given
from hypothesis import strategies as st

from tandem.runner.cuda.buckets import Bucket, bucket_for


@given(st.integers(1, 3000), st.integers(1, 20_000))
def test_the_smallest_that_holds_the_step(num_rows: int, num_blocks: int) -> None:
    bucket = bucket_for(num_rows, num_blocks)
    assert num_rows <= bucket.num_rows < 2 * num_rows
    assert num_blocks <= bucket.num_blocks < max(65, 4 * num_blocks)
    assert bucket_for(bucket.num_rows, bucket.num_blocks) == bucket


def test_there_are_few() -> None:
    buckets = {bucket_for(rows, blocks) for rows in range(1, 257) for blocks in range(1, 1025)}
    assert {bucket.num_rows for bucket in buckets} == {1, 2, 4, 8, 16, 32, 64, 128, 256}
    assert {bucket.num_blocks for bucket in buckets} == {64, 256, 1024}
    assert bucket_for(1, 1) == Bucket(1, 64)
