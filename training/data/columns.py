"""Rows of every usual shape (see `shapes`), read as what a training learns. Needs nothing but the standard library."""

from dataclasses import replace
from typing import Any

from training.data.messages import decoded, number, shown
from training.data.preferences import margin, rejected_messages, rejected_response
from training.data.problems import BadRow
from training.data.prompts import Row
from training.data.samples import Classified, Conversation, Labelled, Learns, Pair, Prompt, Sample, Text, parts
from training.data.shapes import LABELS, read_shape

NOT_READ = {
    **dict.fromkeys(
        ("images", "image", "videos", "video", "audios", "audio", "objects", "rejected_images"),
        "only text can be trained",
    ),
    "documents": "documents beside a conversation cannot be trained: put them into its messages",
    "chat_template_kwargs": "variables of the chat template cannot be chosen by row",
}
"""Columns that change what a row means -> why it cannot be used with them."""
CLASSES = ("label", "labels")
"""Columns with a text's class."""

Content = Conversation | Text | Pair


def read(row: Any, learns: Learns) -> Sample:
    """What a row gives to a training that learns such things. Raises BadRow."""
    content = read_shape(row, learns)
    for name, why in NOT_READ.items():
        if row.get(name):
            raise BadRow(name, why)
    if learns not in ("prompts", "classes"):
        content = _compared(content, row)
    _check_all_read(content, row)
    match learns:
        case "answers" | "text":
            return _answer(content, row)
        case "prompts":
            return _prompt(content, row)
        case "classes":
            return _classified(content, row)
        case "pairs":
            return _judged(_pair(content, row))
        case "labels":
            return _judged(content if isinstance(content, Pair) else _labelled(content, row))


def _judged(sample: Pair | Labelled) -> Sample:
    for part in parts(sample):
        if isinstance(part, Conversation) and any(m.get("weight") == 0 for m in part.messages[part.context :]):
            raise BadRow("", "an answer that is judged is learned whole: no message of it can have weight 0")
    return sample


def _compared(sample: Content, row: Row) -> Content:
    """ms-swift's rejected answer beside a conversation."""
    if not isinstance(sample, Conversation):
        return sample
    if row.get("rejected_messages") is not None:
        return rejected_messages(sample, row)
    return sample if row.get("rejected_response") is None else rejected_response(sample, row["rejected_response"])


def _check_all_read(sample: Content, row: Row) -> None:
    """Raises BadRow for columns of conversations beside plain text."""
    for name in ("system", "system_prompt", "tools", "functions", "history"):
        if row.get(name) and any(isinstance(part, Text) for part in parts(sample)):
            raise BadRow(name, "plain text has no place for it")


def _answer(sample: Content, row: Row) -> Sample:
    if isinstance(sample, Pair):
        raise BadRow("", "these are preferences, two answers to compare: they are learned by rlhf")
    for name in LABELS:
        if row.get(name) is False:
            raise BadRow(name, "it says that the answer is a bad one, which is not to be learned")
    return sample


def _pair(sample: Content, row: Row) -> Pair:
    if not isinstance(sample, Pair):
        raise BadRow("", "there is no rejected answer to compare with")
    return replace(sample, margin=margin(row))


def _labelled(sample: Conversation | Text, row: Row) -> Labelled:
    name = next((name for name in LABELS if row.get(name) is not None), None)
    if name is None:
        raise BadRow("label", "there is none: true for a good answer, false for a bad one")
    if isinstance(sample, Conversation) and sample.context == 0:
        sample = replace(sample, context=len(sample.messages) - 1)
    return Labelled(sample, _label(row[name], name))


def _label(value: Any, place: str) -> bool:
    named = {"true": True, "1": True, "false": False, "0": False}
    found = named.get(value.lower()) if isinstance(value, str) else value
    if found not in (True, False):
        raise BadRow(place, f"must be true or false, not {shown(value)}")
    return bool(found)


def _prompt(sample: Content, row: Row) -> Prompt:
    """What asks for the last answer, with that answer; of preferences, with the chosen one."""
    whole = sample.chosen if isinstance(sample, Pair) else sample
    if isinstance(whole, Text):
        if not whole.prompt:
            raise BadRow("prompt", "is empty")
    else:
        answers = whole.messages[-1]["role"] == "assistant"
        whole = replace(whole, context=whole.context or len(whole.messages) - answers)
        if not whole.context:
            raise BadRow("", "the answer has no message before it that it answers")
    return Prompt(_without_answer(whole) if any(row.get(name) is False for name in LABELS) else whole)


def _without_answer(whole: Conversation | Text) -> Conversation | Text:
    """For an answer that the set calls a bad one."""
    if isinstance(whole, Text):
        return replace(whole, completion="")
    return replace(whole, messages=whole.messages[: whole.context])


def _classified(sample: Content, row: Row) -> Classified:
    if isinstance(sample, Pair):
        raise BadRow("", "these are preferences, two answers to compare: they are of no class")
    name = next((name for name in CLASSES if row.get(name) is not None), None)
    if name is None:
        raise BadRow("label", "there is none: the number of a class, a list of them, or a value to predict")
    return Classified(sample, _class(row[name], name))


def _class(value: Any, place: str) -> float | list[int]:
    value = decoded(value)
    if not isinstance(value, list):
        return number(value, place)
    found = [number(each, f"{place}[{i}]") for i, each in enumerate(value)]
    if any(each != int(each) for each in found):
        raise BadRow(place, f"must be numbers of classes, not {shown(value)}")
    return [int(each) for each in found]
