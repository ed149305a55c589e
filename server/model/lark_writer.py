"""Text as Lark, with the markers that are tokens of the vocabulary as tokens."""

import re
from collections.abc import Mapping

from engines.text.grammar import lark_string

INDEX = "{index}"
"""Where a form counts its calls, the number of the call."""


class LarkWriter:
    """A marker spelled out in letters would be another sequence of tokens than the one the model was trained to write,
    and text between markers could hold it."""

    def __init__(self, token_ids: Mapping[str, int]) -> None:
        self._token_ids = token_ids
        self._pieces = re.compile("|".join(map(re.escape, (INDEX, *token_ids))))

    def text(self, text: str) -> str:
        """Exactly this text."""
        parts, position = [], 0
        for piece in self._pieces.finditer(text):
            parts += [text[position : piece.start()], piece[0]]
            position = piece.end()
        return " ".join(self._part(part) for part in (*parts, text[position:]) if part)

    def up_to(self, end: str, *, rule: str, least: int = 0, most: int | None = None) -> tuple[str, list[str]]:
        """Any text and then `end`, which is the first thing in it to end so, as an expression and the rules, with
        names that begin with `rule`, that it needs. `least` and `most`: characters of the text."""
        if any(end.strip().startswith(marker) for marker in self._token_ids):  # free text has no such tokens
            terminal = rule.upper()
            return f"{terminal} {self.text(end.lstrip())}", [
                f"{terminal}: /(.|\\n){{{least},{'' if most is None else most}}}/"
            ]
        free = f"(.|\\n){{0,{'' if most is None else most - least}}}"
        begin = f"[^{_regex(end[0])}]{{{least}}}" if least else ""
        return rule, [f"{rule}[lazy]: /{begin}{free}{''.join(map(_regex, end))}/"]

    def _part(self, part: str) -> str:
        if part == INDEX:
            return "/[0-9]{1,2}/"
        return f"<[{self._token_ids[part]}]>" if part in self._token_ids else lark_string(part)


def _regex(character: str) -> str:
    return f"\\x{ord(character):02x}" if character.isascii() and not character.isalnum() else character
