"""Names of fields as Anthropic's API has them, where chat completions have others."""

from server.openai.own_names import OwnNames

NAMES = OwnNames(
    (r"^(tools\[\d+\])\.function\.parameters\b", r"\1.input_schema"),
    (r"^(tools\[\d+\])\.function\b", r"\1"),
    (r"^tool_choice\.function\b", "tool_choice"),
    (r"^response_format(\.json_schema)?\b", "output_config.format"),
    (r"^reasoning_effort$", "output_config.effort"),
    (r"^thinking_token_budget$", "thinking.budget_tokens"),
    (r"^stop\b(?!_)", "stop_sequences"),
)
renamed, in_own_words = NAMES.renamed, NAMES.in_own_words
