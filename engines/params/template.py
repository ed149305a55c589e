"""How messages become one prompt."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from engines.params.about import DEPLOY, EVERY_ENGINE, THE_MODEL, TRAINING, About
from engines.params.base import Params


class TemplateParams(Params):
    """How messages become one prompt."""

    starred: ClassVar = frozenset({"template", "system", "max_length", "max_pixels"})

    template: Annotated[str | None, About(not_in_fine_tuning=THE_MODEL)] = None
    """Name of a registered chat template. The model's own unless given."""
    system: Annotated[
        str | None, About(DEPLOY + TRAINING, prepares=True, text=True, not_in_fine_tuning=THE_MODEL, as_served=True)
    ] = None
    """System message for conversations that bring none. The template's own unless given."""
    max_length: Annotated[int | None, About(TRAINING, engines=EVERY_ENGINE, same_as="max_model_len", prepares=True)] = (
        Field(None, ge=1)
    )
    """The most tokens of one sample or conversation. The model's limit unless given."""
    truncation_strategy: Annotated[Literal["delete", "left", "right"], About(TRAINING, prepares=True)] = "delete"
    """What happens to a sample of more than `max_length` tokens: it is left out (`delete`), or loses its beginning
    (`left`) or its end (`right`)."""
    max_pixels: int | None = Field(None, ge=1)
    """Images with more pixels (height times width) are scaled down to this many. Not scaled unless given."""
    tools_prompt: str = "react_en"
    """In which form the tools of an agent's conversation are written into the system message."""
    padding_side: Literal["left", "right"] = "right"
    """Which side short samples of a training batch are padded on. Generation does not depend on it."""
    loss_scale: Annotated[
        Literal["default", "last_round", "all", "react", "agentflan", "alpha_umi", "qwen"],
        About(choices=("default", "last_round", "all"), prepares=True),
    ] = "default"
    """How much each part of a sample weighs in the loss: every answer (`default`), only the last one (`last_round`),
    every token (`all`), or one of the weightings for agents (`react`, `agentflan`, `alpha_umi`, `qwen`)."""
    sequence_parallel_size: int = Field(1, ge=1)
    """Over how many devices each training sequence is divided."""
    use_chat_template: Annotated[
        bool, About(DEPLOY + TRAINING, prepares=True, not_in_fine_tuning=THE_MODEL, as_served=True)
    ] = True
    """Build prompts with the chat template. Without it texts follow one another as they are, as pre-training does."""
    template_backend: Annotated[
        Literal["swift", "jinja"], About(DEPLOY + TRAINING, choices=("jinja",), not_in_fine_tuning=THE_MODEL)
    ] = "jinja"
    """What builds prompts from messages: the Jinja template that comes with the model's tokenizer (`jinja`).
    `swift`, the reference's default, stands for templates that it registers itself, and is refused: none are built
    in."""
