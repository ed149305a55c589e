"""What an adapter may be called."""

import pytest

from engines.adapters.names import LONGEST, check_name
from engines.errors import InvalidRequest


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "sql-lora",
        "Tier_2.v1",
        "org/adapter",
        "ft:gpt:acme::x1",
        "2024",
        "_x",
        "a/b/c",
        "x" * LONGEST,
        "base",
        "base2:x",
    ],
)
def test_a_name_as_they_are_in_use_is_one(name: str) -> None:
    check_name(name, base_name="the-base")


@pytest.mark.parametrize(
    "name",
    ["", " ", "a b", ".", "..", ".hidden", "a/../b", "a//b", "/a", "a/",
     "a/.b", "-x", ":x", "a@1", "ä", "a\n", "a\0", "a\\b",
     "a%2fb", "x" * (LONGEST + 1)],
)  # fmt: skip
def test_what_could_be_taken_for_something_else_is_no_name(name: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        check_name(name, base_name="the-base")
    assert error.value.param == "name"


@pytest.mark.parametrize("name", ["org/base", "org/base:a", "org/base:"])
def test_the_base_models_name_is_taken_and_so_is_what_begins_with_it_and_a_colon(name: str) -> None:
    with pytest.raises(InvalidRequest):
        check_name(name, base_name="org/base")
