"""Names of fields in an API whose requests are answered as chats: errors of the steps that both share tell the client's
own.
"""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager

from engines.errors import TuneserveError


class OwnNames:
    def __init__(self, *names: tuple[str, str]) -> None:
        """Patterns of a field's path in a chat, and what the client calls it. All that match are followed, in order."""
        self._names = [(re.compile(pattern), name) for pattern, name in names]

    def renamed(self, path: str) -> str:
        """`tools[0].name` for `tools[0].function.name`."""
        for pattern, name in self._names:
            path = pattern.sub(name, path)
        return path

    @contextmanager
    def in_own_words(self) -> Iterator[None]:
        """Name the field at fault as the client does, in the error's `param` and where its message quotes it."""
        try:
            yield
        except TuneserveError as error:
            if error.param is None or (name := self.renamed(error.param)) == error.param:
                raise
            told = copy.copy(error)
            told.param = name
            told.message = error.message.replace(f"'{error.param}'", f"'{name}'")
            raise told from error
