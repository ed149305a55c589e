"""Packed rows hold every sample once, never too much, and little is left empty."""

from hypothesis import given
from hypothesis import strategies as st

from training.data.packing import best_fit, pack_stream, packed


@given(st.lists(st.integers(1, 50), max_size=60))
def test_every_sample_is_in_one_row_and_every_row_fits(lengths: list[int]) -> None:
    rows = best_fit(lengths, 50)
    assert sorted(position for row in rows for position in row) == list(range(len(lengths)))
    filled = [sum(lengths[position] for position in row) for row in rows]
    assert all(0 < tokens <= 50 for tokens in filled)
    assert sum(2 * tokens <= 50 for tokens in filled) <= 1, "two rows that are at most half full would be one"


def test_the_fullest_row_that_has_room_is_taken() -> None:
    assert best_fit([6, 4, 3, 3, 4], 10) == [[0, 1], [4, 2, 3]]


def test_a_packed_row_knows_the_lengths_of_its_samples() -> None:
    samples = [{"input_ids": [1, 2], "labels": [-100, 2]}, {"input_ids": [3], "labels": [3]}]
    row = {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "seq_lengths": [2, 1]}
    assert packed(samples) == row
    assert list(pack_stream(samples, 3)) == [row]
