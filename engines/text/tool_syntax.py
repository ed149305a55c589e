"""What a form of tool calls is made of: enough to read calls, to write them, and to hold a model to them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from engines.params.parsers import ToolCallParser

NAME = r"[\w.:/-]{1,128}"
"""A tool's name, as a pattern."""


@dataclass(frozen=True, slots=True)
class Head:
    """What stands between the marker and the arguments of a call whose name comes before them."""

    pattern: str
    """With the group `name`."""
    until: str
    """Its last characters, or the first of what follows it."""
    prefix: str = ""
    """Its first characters. They tell of a further call where the marker is left out."""


@dataclass(frozen=True, slots=True)
class Tags:
    """Arguments one by one, each `before + KEY + between + VALUE + after`; white space around tags does not matter.

    A string is written as it is, any other value as JSON: which it is, the tool's schema tells.
    """

    before: str
    between: str
    after: str
    end: str
    """Behind the last one."""
    between_other: str = ""
    """In place of `between` where the value is no string, in forms that say so beside each value."""

    def begin(self, key: str, *, string: bool) -> str:
        """What stands before a value."""
        return self.before + key + (self.between if string else self.between_other or self.between)

    @property
    def padded(self) -> bool:
        """A value stands on lines of its own: one line break before and behind it is not part of it."""
        return self.between.endswith("\n")


@dataclass(frozen=True, slots=True)
class Literals:
    """Arguments as `KEY + assign + VALUE`, with `comma` between them, up to `close`; values nest in brackets."""

    assign: str
    close: str
    quotes: tuple[str, ...]
    """What strings stand in, the one to write them in first."""
    comma: str
    words: tuple[str, str, str] = ("true", "false", "null")
    """How true, false and null are written."""
    escapes: bool = False
    """A backslash in a string begins an escape sequence."""
    typed: bool = False
    """Every value may stand in quotes: which type it has, the tool's schema tells."""

    @property
    def colon(self) -> str:
        """Between a key and its value in an object within the arguments."""
        return ": " if self.escapes else ":"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """One call is written `before + NAME + between + ARGUMENTS + after`; several are joined by `separator`."""

    name: ToolCallParser
    known_by: str | None = None
    """A pattern that is found in the chat templates of the models that write so."""
    starts: tuple[str, ...]
    """Markers that tell of a call. Before one call there may be several, in this order."""
    ends: tuple[str, ...] = ()
    """Markers that may stand behind a call, in this order. After the last of them comes no further call without a
    marker."""
    first: str = ""
    """Written once, before the first call."""
    before: str
    between: str
    after: str = ""
    separator: str | None = None
    """None: the model was trained to make one call at a time."""
    last: str = ""
    """Written once, after the last call."""
    bare: str = ""
    """The character with which a call may begin without its marker, as the first thing in an answer."""
    bare_names: bool = False
    """A call may begin without its marker, as the first thing in an answer and behind another call: with the name of a
    tool of the request, on a line of its own."""
    behind_content: str = "\n"
    """Between content and the first call."""
    head: Head | None = None
    """None: the name stands in the JSON, beside the arguments."""
    arguments: Tags | Literals | None = None
    """None: JSON."""
    channels: bool = False
    """Every part of an answer has a header that tells what it is: OpenAI's harmony. `engines.answers.channels` reads
    it."""
    ends_reasoning: bool = False
    """The model begins its calls within its reasoning, too, without an end of that."""
    results_follow: bool = False
    """Behind the last of `ends` comes a result, which is not the model's to write: its answer is over there."""
    prompt: str | None = None
    """Name of how the model is told of tools, where that was chosen: one of `tool_prompts.PROMPTS`."""
    native: bool = True
    """The chat template shows calls to the model. Otherwise we do: see `tool_messages`."""
    shows_calls: bool = True
    """The chat template of a native form shows calls that are told beside the content. Otherwise they become part of
    it."""
    shows_tools: bool = True
    """The chat template shows tools to the model. Otherwise we do."""
    call_id: str = ""
    """What the model calls a call, with {name} and {index}, where the chat template shows ids to it."""
    one_call: bool = False
    """The chat template shows the first call of a message only."""
    token_ids: Mapping[str, int] = field(default_factory=dict)
    """The markers that are single tokens of the model's vocabulary."""

    @property
    def start(self) -> str:
        """The marker in front of the first call."""
        return self.starts[0]

    @property
    def markers(self) -> tuple[str, ...]:
        """Whatever may be a token of its own."""
        arguments = self.arguments
        more: tuple[str, ...] = ()
        if isinstance(arguments, Tags):
            more = tuple(part.strip() for part in (arguments.before, arguments.after, arguments.end))
            more += (*arguments.between.split(), *arguments.between_other.split())
        elif isinstance(arguments, Literals):
            more = arguments.quotes
        return (*self.starts, *self.ends, *more)
