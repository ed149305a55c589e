"""Why an answer could not be graded, in OpenAI's words."""

from typing import Literal

ErrorKind = Literal[
    "formula_parse_error",
    "sample_parse_error",
    "truncated_observation_error",
    "unresponsive_reward_error",
    "invalid_variable_error",
    "other_error",
    "python_grader_server_error",
    "python_grader_runtime_error",
    "model_grader_server_error",
    "model_grader_refusal_error",
    "model_grader_parse_error",
]


class GradeError(Exception):
    """One answer has no grade: its reward is 0, and the others go on."""

    def __init__(self, kind: ErrorKind, details: str) -> None:
        super().__init__(details)
        self.kind: ErrorKind = kind
        self.details = details
