"""Where a text's last tokens stood before, and what is guessed of that."""

import pytest

from engines.pt.sequences.prompt_lookup import NO_TOKEN, Lookup


def guess(text: str, *, corpus: str | None = None, shortest: int = 2, longest: int = 4, count: int = 3) -> str:
    known = None if corpus is None else [ord(letter) for letter in corpus]
    lookup = Lookup([ord(letter) for letter in text], shortest=shortest, longest=longest, corpus=known)
    return "".join(map(chr, lookup.propose(count)))


@pytest.mark.parametrize(
    ("text", "guessed"),
    [
        ("abcdef ab", "cde"),
        ("abc b", ""),  # "b" alone is too short
        ("xbc. abcd. abc", "d. "),  # the longest run counts, not the first
        (". abc. abd. ab", "c. "),  # of equals the first
        ("", ""),
        ("a", ""),
        ("abab", "aba"),  # beyond its own end, a text repeats itself
        ("aaa", "aaa"),
    ],
)
def test_a_text_is_looked_up_in_itself(text: str, guessed: str) -> None:
    assert guess(text) == guessed


def test_a_text_is_looked_up_in_another_one_up_to_its_end() -> None:
    assert guess("so ab", corpus="xabcd") == "cd"
    assert guess("so cd", corpus="xabcd") == ""


def test_a_text_that_comes_back_is_followed_from_where_it_left() -> None:
    lookup = Lookup([9], shortest=1, longest=1, corpus=[9, 1, 2, 5, 3, 2, 6, 4, 2, 7])
    assert lookup.propose(4) == [1, 2, 5, 3]
    lookup.extend([1, 2, 5, 8, 2])  # 8 in place of 3
    assert lookup.propose(2) == [6, 4]


def test_a_text_grows() -> None:
    lookup = Lookup([1, 2, 3], shortest=1, longest=4)
    for _ in range(100):
        lookup.extend([4, 5, 6])
    lookup.extend([1])
    assert (lookup.length, lookup.propose(3)) == (304, [2, 3, 4])


def test_nothing_is_guessed_beyond_a_token_that_is_none() -> None:
    assert Lookup([7], shortest=1, longest=2, corpus=[7, 8, NO_TOKEN, 9]).propose(5) == [8]
