"""The names that this API has for what a chat has too, for errors of the steps that both share."""

from server.openai.own_names import OwnNames

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
"""Names of `include`."""

NAMES = OwnNames(
    (r"^messages\b.*", "input"),
    (r"^(max_tokens|max_completion_tokens)$", "max_output_tokens"),
    (r"^response_format\.json_schema\b", "text.format"),
    (r"^response_format\b", "text.format"),
    (r"^verbosity$", "text.verbosity"),
    (r"^reasoning_effort$", "reasoning.effort"),
    (r"^(tools\[\d+\])\.function\b", r"\1"),
    (r"^tool_choice\.allowed_tools\b", "tool_choice"),
    (r"^(tool_choice\b.*?)\.function\b", r"\1"),
)
"""Beginning of a field's path in a chat -> in a response. A message has no place of its own in the input."""
renamed, in_own_words = NAMES.renamed, NAMES.in_own_words
