"""Drops the oldest messages of a conversation that is too long for the model."""

from bisect import bisect_left

from engines.capabilities import Capabilities
from engines.errors import ContextLengthExceeded
from server.model.served import ServedModel
from server.openai.chat import read_messages
from server.openai.schema import ChatMessage, ChatRequest

INSTRUCTIONS = ("system", "developer")


def truncated(chat: ChatRequest, model: ServedModel, capabilities: Capabilities) -> ChatRequest:
    """The same chat with as many of its messages as fit the context beside the output asked for.

    Instructions at the beginning stay, and so does the last message, with the calls that it is an output of. What
    still does not fit is refused where the prompt is made. Takes its time: call it in a thread.
    """
    room = capabilities.max_model_len - (chat.max_completion_tokens or 1)

    def fits(messages: list[ChatMessage]) -> bool:
        try:
            _, prompt = read_messages(chat.model_copy(update={"messages": messages}), model, capabilities)
        except ContextLengthExceeded:
            return False
        return len(prompt.ids) <= room

    kept = _ways_to_cut(chat.messages)
    first = bisect_left(kept, True, hi=len(kept) - 1, key=fits)
    return chat if first == 0 else chat.model_copy(update={"messages": kept[first]})


def _ways_to_cut(messages: list[ChatMessage]) -> list[list[ChatMessage]]:
    """The messages, then ever fewer of them. None begins with a tool's output, whose call would be gone."""
    start = next((i for i, message in enumerate(messages) if message.role not in INSTRUCTIONS), len(messages))
    head = messages[:start]
    later = [i for i in range(start + 1, len(messages)) if messages[i].role != "tool"]
    return [messages, *(head + messages[i:] for i in later)]
