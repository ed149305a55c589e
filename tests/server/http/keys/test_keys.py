"""Keys: how they are written, where they are read from, and that one which cannot be meant stops the start."""

import logging
from pathlib import Path

import pytest

from server.http.keys.caller import ALL_ROLES, Caller, Role
from server.http.keys.keys import Keys, WrongKeys

LONG = "0123456789abcdef"
OTHER = "fedcba9876543210"
OPTIONS = "max_running_requests, requests_per_minute, tokens_per_minute, max_outputs, weight"


def refusal(*texts: str, variable: str = "", file: Path | None = None) -> str:
    with pytest.raises(WrongKeys) as refused:
        Keys(texts, variable=variable, file=file)
    assert "\n" not in refused.value.message
    return refused.value.message


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.touch(mode=0o600)
    return path


# ---- how a key is written


@pytest.mark.parametrize(
    ("text", "key", "name", "roles"),
    [
        (LONG, LONG, None, ALL_ROLES),
        (f"infer:{LONG}", LONG, None, {Role.INFER}),
        (f"infer+train:{LONG}", LONG, None, {Role.INFER, Role.TRAIN}),
        (f"team-a={LONG}", LONG, "team-a", ALL_ROLES),
        (f"team.A_1=admin:{LONG}", LONG, "team.A_1", {Role.ADMIN}),
        (f"team=infer:{LONG}==", f"{LONG}==", "team", {Role.INFER}),
        (f"train:{LONG}==", f"{LONG}==", None, {Role.TRAIN}),
        ("sk-proj-a.b_c~d+e/f", "sk-proj-a.b_c~d+e/f", None, ALL_ROLES),
    ],
)
def test_a_key_has_a_name_and_roles(text: str, key: str, name: str | None, roles: set[Role]) -> None:
    caller = Keys([text]).find(key)
    assert caller is not None
    assert caller.roles == roles
    assert caller.name == name or (name is None and caller.name is not None and caller.name.startswith("key-"))


def test_what_no_name_was_given_to_is_called_by_its_digest() -> None:
    caller = Keys([LONG]).find(LONG)
    assert caller is not None and caller.name == "key-9f9f5111"  # of SHA-256


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("infer:", "is empty"),
        ("team=", "ends with its '='"),
        ("a-team-of-many-people=", "ends with its '='"),
        (f"{LONG}==", "ends with its '='"),
        ("team=infer:", "is empty"),
        (f"Infer:{LONG}", "has no role before its colon: infer, train, admin, metrics"),
        (f"inference:{LONG}", "has no role before its colon"),
        (f":{LONG}", "has no role before its colon"),
        (f"infer,train:{LONG}", "has no role before its colon"),
        (f"infer+:{LONG}", "has no role before its colon"),
        (f"infer:train:{LONG}", "has no role before its colon"),
        ("a", "is shorter than 16 characters"),
        (f"infer:{LONG[1:]}", "is shorter than 16 characters"),
        (f"{LONG} ", "has other characters"),
        (f"{LONG}\n", "has other characters"),
        (f"{LONG}é", "has other characters"),
        (f"{LONG}\u00a0", "has other characters"),
        (f"name={LONG[:8]}={LONG}", "has other characters"),
        (f"={LONG}", "has a wrong name"),
        (f"a team={LONG}", "has a wrong name"),
        (f"té={LONG}", "has a wrong name"),
        (f"-x={LONG}", "has a wrong name"),
        ("n" * 65 + f"={LONG}", "has a wrong name"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_its_place_and_never_quoted(text: str, reason: str) -> None:
    message = refusal(OTHER, text)
    assert message.startswith("key 2 of --api_key ") and reason in message
    assert LONG[:8] not in message


def test_one_key_of_two_meanings_is_refused() -> None:
    for one, two in ((LONG, f"infer:{LONG}"), (f"a={LONG}", f"b={LONG}")):
        assert "key 2 of --api_key is the same key as key 1 of --api_key" in refusal(one, two)
    assert Keys([LONG, LONG], variable=LONG).find(LONG) is not None


def test_one_name_may_have_several_keys() -> None:
    keys = Keys([f"team=infer:{LONG}", f"team=train:{OTHER}"])
    assert keys.find(LONG) == Caller(name="team", roles=frozenset({Role.INFER}))
    assert keys.find(OTHER) == Caller(name="team", roles=frozenset({Role.TRAIN}))
    assert keys.names == {"team"}


# ---- where keys come from


@pytest.mark.parametrize("variable", [f"{LONG},team=infer:{OTHER}", f" {LONG}\n team=infer:{OTHER},\n"])
def test_the_variable_has_keys_between_white_space_or_commas(variable: str) -> None:
    keys = Keys(variable=variable)
    assert keys.find(LONG) and keys.find(OTHER)


@pytest.mark.parametrize("variable", ["", " ", ",\n"])
def test_an_empty_variable_is_no_key(variable: str) -> None:
    assert not Keys(variable=variable)
    assert Keys(variable=variable).find("") is None


def test_a_wrong_key_of_the_variable_is_told_by_it() -> None:
    assert refusal(variable=f"{LONG},infer:").startswith("key 2 of TUNESERVE_API_KEY is empty")


def test_a_file_has_a_key_on_each_line(file: Path) -> None:
    file.write_text(f"# ours\n\n  team=infer:{LONG}  # asks\n{OTHER}\n #")
    keys = Keys(file=file)
    assert keys.find(LONG) and keys.find(OTHER)
    assert len(keys.names) == 2


def test_a_file_says_the_weight_of_a_name(file: Path) -> None:
    file.write_text(f"team=infer:{LONG} weight=3\nteam={OTHER}\n")
    keys = Keys(file=file)
    assert (keys.weight_of("team"), keys.weight_of("nobody"), keys.weight_of(None)) == (3, 1, 1)
    file.write_text(f"team=infer:{LONG} weight=2\n")
    keys.reload()
    assert keys.weight_of("team") == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{LONG}\ninfer:\n", "the key in line 2 of FILE is empty"),
        (f"{LONG} wieght=2\n", "the key in line 1 of FILE has an unknown option 'wieght': " + OPTIONS),
        (f"{OTHER} {LONG}\n", "the key in line 1 of FILE has an unknown option after the key: " + OPTIONS),
        (f"{LONG} max_outputs=0\n", "the key in line 1 of FILE has a wrong max_outputs: one number from 1 on"),
        (
            f"{LONG} max_outputs=1 max_outputs=2\n",
            "the key in line 1 of FILE has a wrong max_outputs: one number from 1 on",
        ),
        (f"{LONG} weight=0.5\n", "the key in line 1 of FILE has a wrong weight: one number from 1 on"),
        (
            f"a={LONG} weight=1\na={OTHER} weight=2\n",
            "the key in line 2 of FILE has the name of the key in line 1 of FILE, and other options",
        ),
        (
            f"a={LONG} max_outputs=1\na={OTHER} max_outputs=2",
            "the key in line 2 of FILE has the name of the key in line 1 of FILE, and other options",
        ),
        (f"infer: {LONG}\n", "the key in line 1 of FILE is empty"),
        ("# none\n", "FILE has no key"),
        ("", "FILE has no key"),
    ],
)
def test_a_wrong_line_is_told_by_its_number(file: Path, text: str, reason: str) -> None:
    file.write_text(text)
    message = refusal(file=file)
    assert message.replace(str(file), "FILE") == reason


def test_a_file_that_is_none_is_refused(tmp_path: Path, file: Path) -> None:
    assert refusal(file=tmp_path / "nope") == f"cannot read --api_key_file {tmp_path}/nope: No such file or directory"
    assert refusal(file=tmp_path) == f"{tmp_path} is no file of keys"
    file.write_bytes(b"\xff" * 20)
    assert refusal(file=file) == f"{file} is not text in UTF-8"


def test_a_file_of_keys_is_its_owners(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.write_text(LONG)
    Keys(file=file)
    assert not caplog.records
    file.chmod(0o644)
    Keys(file=file)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] and "chmod 600" in caplog.text
    file.chmod(0o666)
    assert "every user of the machine can write to" in refusal(file=file)


# ---- read again


def test_the_file_is_read_again_when_it_is_told_to(file: Path) -> None:
    file.write_text(f"old={LONG}")
    keys = Keys(file=file)
    file.write_text(f"new=infer:{OTHER}")
    assert keys.find(LONG)
    keys.reload()
    assert keys.find(LONG) is None and keys.find(OTHER)
    assert keys.names == {"new"}


@pytest.mark.parametrize("text", ["", f"infer:{OTHER}\ninfer:\n", f"{OTHER} limit=1", None])
def test_a_mistake_in_it_keeps_every_key_as_it_was(
    file: Path, caplog: pytest.LogCaptureFixture, text: str | None
) -> None:
    file.write_text(LONG)
    keys = Keys(file=file)
    file.unlink() if text is None else file.write_text(text)
    keys.reload()
    assert keys.find(LONG) and keys.find(OTHER) is None
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert LONG not in caplog.text and OTHER not in caplog.text
