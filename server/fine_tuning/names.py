"""What the models that come out of a fine-tuning job are called: `ft:<base>:<owner>:<suffix>:<id>`, as at OpenAI."""

import re

from engines.adapters.names import check_name
from engines.errors import InvalidRequest
from server.inference.fine_tuned import CHECKPOINT, FINE_TUNED

FOREIGN = re.compile(r"[^A-Za-z0-9._-]+")
LONGEST_BASE = 50
LONGEST_OWNER = 30
MOST_STEPS = 10**9


def model_name(*, base: str, owner: str, suffix: str | None, job_id: str) -> str:
    """The name of the job's result. Raises InvalidRequest (`param` "model") where the base's name allows none."""
    told = "/".join(filter(None, map(_part, base[:LONGEST_BASE].split("/"))))
    name = FINE_TUNED + ":".join((told, _part(owner[:LONGEST_OWNER]), suffix or "", job_id.partition("-")[2]))
    try:
        check_name(checkpoint_name(name, MOST_STEPS), base_name=base)
    except InvalidRequest as error:
        raise InvalidRequest(f"No model can be named after {base!r}: {error.message}", param="model") from None
    return name


def checkpoint_name(model: str, step: int) -> str:
    return f"{model}{CHECKPOINT}{step}"


def _part(text: str) -> str:
    """`text` in the characters that a model's name may have."""
    return FOREIGN.sub("-", text).lstrip("-.")
