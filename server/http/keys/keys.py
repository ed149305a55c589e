"""The server's keys: `[NAME=][ROLE[+ROLE...]:]KEY`, from a parameter, an environment variable and a file.

The text of a key stands in no log, message or metric. A key is known by where it was given ("key 2 of --api_key") until
it is understood, and by its name from then on.
"""

import hashlib
import hmac
import itertools
import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from engines.errors import TuneserveError
from server.http.keys.caller import ALL_ROLES, Caller, Role

logger = logging.getLogger(__name__)

VARIABLE = "TUNESERVE_API_KEY"
MIN_LENGTH = 16
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)
KEY = re.compile(r"[\w.~+/-]+=*", re.ASCII)
"""What the header `Authorization: Bearer KEY` can bring (RFC 6750, b64token)."""
NUMBER = re.compile(r"[1-9][0-9]{0,11}", re.ASCII)
OPTION = re.compile(r"[a-z_]{1,32}=.*")


class WrongKeys(TuneserveError):
    """Keys that cannot be used. The message says which and why, and never their text."""

    code = "wrong_keys"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLimits:
    """What one key may take; None: no limit."""

    max_running_requests: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Tokens of prompts and outputs together."""
    max_outputs: int | None = None
    """Outputs of one request: `n` for each of its prompts."""

    def or_else(self, defaults: "KeyLimits") -> "KeyLimits":
        """These, and `defaults` where there is none."""
        given = {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}
        return replace(defaults, **given)


OPTIONS = (*(field.name for field in fields(KeyLimits)), "weight")


@dataclass(frozen=True, slots=True)
class ApiKey:
    digest: bytes
    caller: Caller
    where: str
    """Where it was given, in words."""
    limits: KeyLimits = KeyLimits()
    weight: int | None = None
    """Weight of its name's share of the engine; None: 1."""

    @property
    def options(self) -> tuple[KeyLimits, int | None]:
        return self.limits, self.weight


NO_OPTIONS = (KeyLimits(), None)


class Keys:
    """All keys of the server, and the caller that each stands for."""

    def __init__(
        self, texts: Sequence[str] | None = None, *, variable: str = "", file: str | Path | None = None
    ) -> None:
        """`variable` has keys separated by white space or commas, `file` one on each line. Raises WrongKeys."""
        in_variable = [text for text in re.split(r"[\s,]+", variable) if text]
        self._fixed = (*_parse_all(texts or (), "--api_key"), *_parse_all(in_variable, VARIABLE))
        self._file = None if file is None else Path(file).expanduser()
        self._keys = self._read()

    def __bool__(self) -> bool:
        return bool(self._keys)

    @property
    def names(self) -> frozenset[str]:
        """Names of all who have a key."""
        return frozenset(key.caller.name for key in self._keys if key.caller.name is not None)

    def limits_of(self, name: str) -> KeyLimits:
        """The limits that the keys of a name have together."""
        return next((key.limits for key in self._keys if key.caller.name == name), KeyLimits())

    def weight_of(self, name: str | None) -> int:
        """Weight of the share of the engine that the keys of a name have together."""
        return next((key.weight for key in self._keys if key.caller.name == name and key.weight), 1)

    def find(self, text: str) -> Caller | None:
        """The caller whose key `text` is. Every key is compared, so that the time taken tells nothing."""
        digest = _digest(text)
        found = [key.caller for key in self._keys if hmac.compare_digest(key.digest, digest)]
        return found[0] if found else None

    def reload(self) -> None:
        """Read the file again: all keys change at once, or none where any is wrong."""
        if self._file is None:
            logger.info("There is no --api_key_file to read again.")
            return
        try:
            self._keys = self._read()
        except WrongKeys as error:
            logger.error("The keys stay as they were: %s", error)
        else:
            logger.info("Read %s again: keys of %s.", self._file, ", ".join(sorted(self.names)))

    def _read(self) -> tuple[ApiKey, ...]:
        return _distinct((*self._fixed, *(() if self._file is None else _read_file(self._file))))


def parse_key(text: str, where: str) -> ApiKey:
    """The key that `text` is. Raises WrongKeys."""
    name, equals, rest = text.partition("=")
    if not equals or ":" in name:  # what follows the roles is the key's own padding
        name, rest = "", text
    elif not NAME.fullmatch(name):
        raise WrongKeys(f"{where} has a wrong name before its '=': at most 64 letters, digits and any of . _ -")
    elif not rest.strip("="):
        raise WrongKeys(f"{where} ends with its '=': a key follows the name. One that ends so needs a name, NAME=KEY")
    prefix, colon, key = rest.rpartition(":")
    roles = _parse_roles(prefix, where) if colon else ALL_ROLES
    if not key:
        raise WrongKeys(f"{where} is empty")
    if not KEY.fullmatch(key):
        raise WrongKeys(f"{where} has other characters than letters, digits, any of - . _ ~ + / and = at its end")
    if len(key) < MIN_LENGTH:
        raise WrongKeys(f"{where} is shorter than {MIN_LENGTH} characters")
    digest = _digest(key)
    return ApiKey(digest, Caller(name=name or f"key-{digest.hex()[:8]}", roles=roles), where)


def _parse_roles(prefix: str, where: str) -> frozenset[Role]:
    words = prefix.split("+")
    if not ALL_ROLES.issuperset(words):
        raise WrongKeys(f"{where} has no role before its colon: {', '.join(Role)}, or several with + between")
    return frozenset(map(Role, words))


def _parse_all(texts: Iterable[str], source: str) -> Iterator[ApiKey]:
    return (parse_key(text, f"key {number} of {source}") for number, text in enumerate(texts, 1))


def _read_file(path: Path) -> tuple[ApiKey, ...]:
    """The keys of a file, one on each line; what follows a # is a comment."""
    lines = enumerate(_read_text(path).splitlines(), 1)
    found = [(words, f"the key in line {number} of {path}") for number, line in lines if (words := _words(line))]
    if not found:
        raise WrongKeys(f"{path} has no key")
    return tuple(_parse_words(words, where) for words, where in found)


def _words(line: str) -> list[str]:
    return list(itertools.takewhile(lambda word: not word.startswith("#"), line.split()))


def _parse_words(words: Sequence[str], where: str) -> ApiKey:
    """A key, and options after it: `NAME=VALUE`."""
    text, *options = words
    key = parse_key(text, where)
    found: dict[str, int] = {}
    for option in options:
        name, _, value = option.partition("=")
        if name not in OPTIONS:
            told = repr(name) if OPTION.fullmatch(option) else "after the key"
            raise WrongKeys(f"{where} has an unknown option {told}: {', '.join(OPTIONS)}")
        if name in found or not NUMBER.fullmatch(value):
            raise WrongKeys(f"{where} has a wrong {name}: one number from 1 on")
        found[name] = int(value)
    return replace(key, weight=found.pop("weight", None), limits=KeyLimits(**found))


def _read_text(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise WrongKeys(f"{path} is no file of keys")
        if mode & stat.S_IWOTH:
            raise WrongKeys(f"every user of the machine can write to {path}: chmod 600 closes it")
        if mode & stat.S_IROTH:
            logger.warning("Every user of the machine can read the keys in %s: chmod 600 closes it.", path)
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise WrongKeys(f"cannot read --api_key_file {path}: {os.strerror(error.errno or 0)}") from None
    except UnicodeDecodeError:
        raise WrongKeys(f"{path} is not text in UTF-8") from None


def _distinct(keys: Iterable[ApiKey]) -> tuple[ApiKey, ...]:
    """Each key once: the same key with two meanings is a mistake. Options hold for all keys of a name."""
    found: dict[bytes, ApiKey] = {}
    telling: dict[str | None, ApiKey] = {}
    for key in keys:
        first = found.setdefault(key.digest, key)
        if (first.caller, first.options) != (key.caller, key.options):
            raise WrongKeys(f"{key.where} is the same key as {first.where}, and means something else")
        if key.options != NO_OPTIONS:
            first = telling.setdefault(key.caller.name, key)
            if first.options != key.options:
                raise WrongKeys(f"{key.where} has the name of {first.where}, and other options")
    told = ((key, telling.get(key.caller.name, key)) for key in found.values())
    return tuple(replace(key, limits=same.limits, weight=same.weight) for key, same in told)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
