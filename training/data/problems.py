"""What is wrong with data, for the person who made it."""

from engines.errors import InvalidRequest


class BadData(InvalidRequest):
    """A data set cannot be used. The message names the place; `param` is `dataset` or `val_dataset`."""

    code = "invalid_training_file"


class BadRow(Exception):
    """One row cannot be used: `field` is where in it ("" where it is the whole of it), and the text says why."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field


def kind(value: object) -> str:
    """How JSON calls the type of a value, for messages."""
    names = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
