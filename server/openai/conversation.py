"""The messages of a request and how they are rendered: the same where they are answered and where they are counted."""

from collections.abc import Mapping, Sequence
from typing import Any

from engines.errors import InvalidRequest, UnsupportedParameter
from engines.text.prompt import Conversation
from engines.text.tool_messages import for_template
from server.model.served import ServedModel
from server.model.tools import ToolRequest
from server.openai.functions import with_tool_calls
from server.openai.schema import ChatMessage, ConversationFields


def check_conversation(body: ConversationFields, messages: Sequence[ChatMessage]) -> None:
    """Refuse what excludes each other, or is not for clients to choose, whatever the model."""
    if body.chat_template is not None:
        raise UnsupportedParameter("'chat_template' is not supported: the server's own is used.", param="chat_template")
    if not body.continue_final_message:
        return
    if body.add_generation_prompt and "add_generation_prompt" in body.model_fields_set:
        raise InvalidRequest(
            "'add_generation_prompt' and 'continue_final_message' exclude each other.", param="continue_final_message"
        )
    if messages[-1].role != "assistant":
        raise InvalidRequest(
            "'continue_final_message' needs a final message of role 'assistant'.", param="continue_final_message"
        )


def to_conversation(
    body: ConversationFields,
    messages: Sequence[ChatMessage],
    tools: ToolRequest,
    model: ServedModel,
    template_kwargs: Mapping[str, Any],
) -> Conversation:
    """What the chat template gets to see."""
    if body.documents and "documents" not in model.renderer.template:
        raise UnsupportedParameter("This model's chat template shows it no documents.", param="documents")
    ready = model.renderer.messages([*with_tool_calls(message.model_dump(exclude_none=True) for message in messages)])
    definitions = [tool.definition for tool in tools.tools]
    ready, shown = for_template(ready, definitions, model.output_format.tools, model.renderer.template)
    return Conversation(
        messages=ready,
        tools=shown,
        add_generation_prompt=body.add_generation_prompt and not body.continue_final_message,
        continue_final_message=body.continue_final_message,
        documents=body.documents or None,
        template_kwargs=template_kwargs,
    )
