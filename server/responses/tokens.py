"""Counts the tokens of a prompt without answering it."""

from engines.errors import InvalidRequest
from server.model.served import ServedModel
from server.openai.chat import chat_conversation
from server.openai.tokenization import MAX_COUNTED
from server.responses.context import Context
from server.responses.schema import CountedRequest
from server.responses.seal import Seal
from server.responses.to_chat import to_chat


def count(body: CountedRequest, context: Context, seal: Seal, model: ServedModel) -> int:
    """Raises InvalidRequest. What is long takes its time: call it in a thread."""
    chat = to_chat(body, context, seal.open)
    _, conversation = chat_conversation(chat, model)
    text = model.renderer.render(conversation)
    if len(text) > MAX_COUNTED:
        raise InvalidRequest(
            f"The input makes {len(text)} characters; at most {MAX_COUNTED} are counted.", param="input"
        )
    return len(model.renderer.encode(text, add_special_tokens=False))
