"""How messages become one prompt."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from engines.params.about import DEPLOY, EVERY_ENGINE, FOR_IMAGES, PAGE, THE_MODEL, THE_SERVER, TRAINING, About
from engines.params.base import JsonObject, Params

NAMED = {
    "chatml": "chatml",
    "qwen": "qwen2_5",
    "qwen2_5": "qwen2_5",
    "qwen3": "qwen3",
    "llama3": "llama3",
    "mistral": "mistral",
    "gemma": "gemma",
    "phi3": "phi3",
    "deepseek": "deepseek",
    "deepseek_v2_5": "deepseek_v2_5",
    "deepseek_r1": "deepseek_r1",
}
"""Chat templates that are known by name -> their files in `engines/text/named_templates`."""


TOOLS_PROMPTS = ("glm4", "hermes", "react_en", "react_zh", "toolbench")


class TemplateParams(Params):
    """How messages become one prompt."""

    starred: ClassVar = frozenset({"template", "system", "max_length", "max_pixels"})

    template: Annotated[
        str | None, About(DEPLOY + TRAINING, choices=(None, *NAMED), prepares=True, text=True, as_served=True)
    ] = None
    """Name of a chat template in place of the model's own: `chatml`, `qwen2_5` (also `qwen`), `qwen3`, `llama3`,
    `mistral`, `gemma`, `phi3`, `deepseek`, `deepseek_v2_5` or `deepseek_r1`. What is trained is served with it."""
    system: Annotated[
        str | None,
        About(DEPLOY + PAGE + TRAINING, prepares=True, text=True, not_in_fine_tuning=THE_MODEL, as_served=True),
    ] = None
    """System message for conversations that bring none. The template's own unless given."""
    max_length: Annotated[int | None, About(TRAINING, engines=EVERY_ENGINE, same_as="max_model_len", prepares=True)] = (
        Field(None, ge=1)
    )
    """The most tokens of one sample or conversation. The model's limit unless given."""
    truncation_strategy: Annotated[Literal["delete", "left", "right", "split"], About(TRAINING, prepares=True)] = (
        "delete"
    )
    """What happens to a sample of more than `max_length` tokens: it is left out (`delete`), loses its beginning
    (`left`) or its end (`right`), or, in pt, becomes several (`split`)."""
    max_pixels: Annotated[int | None, About(not_in_deploy=FOR_IMAGES, not_in_training=FOR_IMAGES)] = Field(None, ge=1)
    """Images with more pixels (height times width) are scaled down to this many. Not scaled unless given."""
    tools_prompt: Annotated[
        str | None, About(DEPLOY + TRAINING, choices=(None, *TOOLS_PROMPTS), prepares=True, text=True, as_served=True)
    ] = None
    """How the model is told of tools, and writes its calls: by a system message that asks for ReAct's `Action:` and
    `Action Input:` (`react_en`, the reference's default; `react_zh`, in Chinese; `toolbench`, ended by a call of
    `Finish`, as ToolBench's answers are), or for calls in the form of Hermes (`hermes`) or of GLM-4 (`glm4`, in
    Chinese). As its own chat template has them unless given. What is trained is served with it."""
    padding_side: Literal["left", "right"] = "right"
    """Which side short samples of a training batch are padded on. Generation does not depend on it."""
    loss_scale: Annotated[
        Literal["default", "last_round", "all", "react", "agentflan", "alpha_umi", "qwen"] | str,
        About(
            prepares=True,
            api_choices=("default", "last_round", "all", "react", "agentflan", "alpha_umi", "qwen"),
        ),
    ] = "default"
    """How much each part of a sample weighs in the loss: every answer (`default`), only the last one (`last_round`),
    every token (`all`), or one of the weightings for agents (`react`, `agentflan`, `alpha_umi`, `qwen`); or the path of
    a JSON file of one's own, from words to weights."""
    sequence_parallel_size: Annotated[int, About(TRAINING, not_in_fine_tuning=THE_SERVER)] = Field(1, ge=1)
    """Over how many devices each training sequence is divided, in sft and pt: it divides the heads of attention."""
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


class ChatTemplateParams(TemplateParams):
    """Chat templates of one's own. An addition to the reference's parameters."""

    chat_template: Annotated[str | None, About(DEPLOY + TRAINING, prepares=True, path=True, as_served=True)] = None
    """A Jinja chat template in place of the model's own: the path of a .jinja file, or the template itself. What is
    trained is served with it."""
    chat_template_kwargs: Annotated[
        JsonObject | None, About(DEPLOY + TRAINING, prepares=True, text=True, as_served=True)
    ] = None
    """Values of the chat template's variables, where a request says nothing of them: `{"enable_thinking": false}`, for
    one. What is trained is served with them."""


def template_conflicts(params: ChatTemplateParams, *, mark: str = "") -> list[tuple[str, str]]:
    """Each parameter of chat templates that nothing would read beside the others that were given, and why. `mark`
    stands before the names of parameters in the reasons."""
    found = []
    if params.template is not None and params.chat_template is not None:
        found.append(("chat_template", f"{mark}template names another one: give one of the two"))
    if not params.use_chat_template:
        names = ("template", "chat_template", "chat_template_kwargs", "tools_prompt")
        unread = [name for name in names if getattr(params, name) is not None]
        found += [(name, f"nothing uses it where {mark}use_chat_template is false") for name in unread]
    if params.tools_prompt is not None and getattr(params, "tool_call_parser", None) is not None:
        found.append(("tool_call_parser", f"{mark}tools_prompt says how calls are written: give one of the two"))
    return found
