"""The chat template that a model is trained and served with: named, given, or its own, with values of its variables."""

from pathlib import Path
from typing import Any

import pytest
import trl

from engines.errors import InvalidRequest
from engines.params.deploy import DeployParams
from engines.params.template import NAMED, TOOLS_PROMPTS
from engines.text.prompt import Conversation, PromptRenderer
from engines.text.templates import chosen_template, named_template, template_in, with_variables
from engines.text.tool_prompts import PROMPTS, tools_prompt_of
from tests.training.data.tokenizers import CHATML, tokenizer

ORIGINALS = {
    "qwen": "qwen2_5", "qwen2_5": "qwen2_5", "qwen3": "qwen3", "llama3": "llama3", "gemma": "gemma", "phi3": "phi3",
    "deepseek_r1": "deepseek_r1_distill",
}  # fmt: skip
"""Name -> the model's own template in TRL's package."""
PROMPT = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "uno"},
    {"role": "user", "content": "two"},
]
SYSTEM = {"role": "system", "content": "Be brief."}


def rendered(template: Any, messages: list[dict[str, Any]], **more: Any) -> str:
    renderer = PromptRenderer(tokenizer(None), chat_template=template)
    return renderer.render(Conversation(messages=renderer.messages(messages), **more))


@pytest.mark.parametrize("name", ORIGINALS)
@pytest.mark.parametrize("asked", [True, False])
def test_a_named_template_writes_what_the_models_own_does(name: str, asked: bool) -> None:
    own = (Path(trl.__file__).parent / "chat_templates" / f"{ORIGINALS[name]}.jinja").read_text()
    for messages in (PROMPT, [*PROMPT, {"role": "assistant", "content": "dos"}], [SYSTEM, *PROMPT]):
        if name == "gemma" and messages[0] is SYSTEM:
            continue  # it has none
        there = rendered(own, messages, add_generation_prompt=asked)
        assert rendered(named_template(name), messages, add_generation_prompt=asked) == there


CHATML_WRITES = """\
<|im_start|>system
Be brief.<|im_end|>
<|im_start|>user
one<|im_end|>
<|im_start|>assistant
uno<|im_end|>
<|im_start|>user
two<|im_end|>
<|im_start|>assistant
"""
DEEPSEEK_WRITES = (
    "<s>Be brief.<\uff5cUser\uff5c>one<\uff5cAssistant\uff5c>uno<\uff5cend▁of▁sentence\uff5c>"
    "<\uff5cUser\uff5c>two<\uff5cAssistant\uff5c>"
)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("chatml", CHATML_WRITES),
        ("mistral", "<s>[INST] Be brief.\n\none[/INST] uno</s>[INST] two[/INST]"),
        ("deepseek", "<s>Be brief.\n\nUser: one\n\nAssistant: uno</s>User: two\n\nAssistant:"),
        ("deepseek_v2_5", DEEPSEEK_WRITES),
    ],
    ids=["chatml", "mistral", "deepseek", "deepseek_v2_5"],
)
def test_the_others_write_their_published_form(name: str, written: str) -> None:
    assert rendered(named_template(name), [SYSTEM, *PROMPT]) == written


def test_every_name_has_a_template() -> None:
    for name in NAMED:
        assert "two" in rendered(named_template(name), PROMPT)


def test_variables_have_their_values_unless_they_are_rendered_with_others() -> None:
    template = with_variables(
        "{{ mood }} {{ tags }} {{ messages[0].content }}", {"mood": "it's {% so %}", "tags": [1, None]}
    )
    assert rendered(template, PROMPT[:1]) == "it's {% so %} [1, None] one"
    assert rendered(template, PROMPT[:1], template_kwargs={"mood": "sad"}) == "sad [1, None] one"
    assert with_variables(template, {"mood": "it's {% so %}", "tags": [1, None]}) == template


@pytest.mark.parametrize("name", ["unknown", "messages", "tools", "a b"])
def test_what_is_no_variable_of_the_template_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=name) as refused:
        with_variables("{{ messages }} {{ tools }} a b", {name: 1})
    assert refused.value.param == "chat_template_kwargs"


def test_one_that_is_given_goes_before_the_models_own() -> None:
    own = tokenizer(CHATML)
    assert chosen_template(DeployParams(), own) == CHATML
    assert chosen_template(DeployParams(template="chatml"), own) == named_template("chatml")
    assert chosen_template(DeployParams(chat_template="{{ messages }}"), own) == "{{ messages }}"
    assert "im_start" not in str(chosen_template(DeployParams(use_chat_template=False), own))


def test_each_of_several_has_the_variables() -> None:
    own = tokenizer(None)
    own.chat_template = {"default": "{{ mood }}", "tool_use": "{{ mood }} {{ tools }}"}
    chosen = chosen_template(DeployParams(chat_template_kwargs={"mood": "merry"}), own)
    assert rendered(chosen, PROMPT) == "merry"
    assert rendered(chosen, PROMPT, tools=[{"type": "function"}]).startswith("merry [")


@pytest.mark.parametrize("given", [{"chat_template_kwargs": {"mood": "merry"}}, {"tools_prompt": "react_en"}])
def test_a_model_without_template_has_no_variables_and_tells_of_no_tools(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="no chat template") as refused:
        chosen_template(DeployParams(**given), tokenizer(None))
    assert refused.value.param == next(iter(given))


def test_a_template_holds_how_tools_are_told_of_and_writes_the_same_otherwise() -> None:
    assert set(TOOLS_PROMPTS) == set(PROMPTS)
    own = tokenizer("{{ mood }}\n" + CHATML)
    plain, told = (DeployParams(chat_template_kwargs={"mood": "merry"}, tools_prompt=name) for name in (None, "hermes"))
    chosen = chosen_template(told, own)
    assert isinstance(chosen, str)
    assert tools_prompt_of(chosen) == "hermes"
    assert rendered(chosen, PROMPT) == rendered(chosen_template(plain, own), PROMPT)
    own.chat_template = chosen
    assert chosen_template(told, own) == chosen
    other = chosen_template(DeployParams(tools_prompt="react_zh"), own)
    assert isinstance(other, str)
    assert (tools_prompt_of(other), tools_prompt_of(CHATML)) == ("react_zh", None)
    assert rendered(other, PROMPT) == rendered(chosen, PROMPT)


def test_a_folder_has_the_template_in_a_file_of_its_own_or_of_its_tokenizer(tmp_path: Path) -> None:
    assert template_in(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "older"}')
    assert template_in(tmp_path) == "older"
    (tmp_path / "chat_template.jinja").write_text("newer")
    assert template_in(tmp_path) == "newer"
