"""Chat templates of well-known families, each with a tokenizer: those of TRL's package, and others as far as they
write text."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trl
from tokenizers import AddedToken

from tests.training.data.tokenizers import tokenizer

OPENING = "{{ bos_token }}"
ROLES = (
    "{% for m in messages %}{% if m.role == 'system' %}SYSTEM{% elif m.role == 'user' %}USER{% else %}ANSWER{% endif %}"
)
END = "{% endfor %}{% if add_generation_prompt %}PROMPT{% endif %}"


def _template(system: str, user: str, answer: str, prompt: str, opening: str = OPENING) -> str:
    """Each with {} where a message's content is."""
    texts = {"SYSTEM": system, "USER": user, "ANSWER": answer, "PROMPT": prompt}
    made = opening + ROLES + END
    for name, text in texts.items():
        made = made.replace(name, text.replace("{}", "{{ m.content }}"))
    return made


FAMILIES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "chatml": (
        _template("<|im_start|>system\n{}<|im_end|>\n", "<|im_start|>user\n{}<|im_end|>\n",
                  "<|im_start|>assistant\n{}<|im_end|>\n", "<|im_start|>assistant\n", ""),
        "<|im_end|>", ("<|im_start|>", "<|im_end|>"),
    ),
    "llama2": (
        _template("<<SYS>>\n{}\n<</SYS>>\n\n", "[INST] {} [/INST]", " {} </s>", ""), "</s>", ("</s>",),
    ),
    "mistral": (_template("{}\n\n", "[INST] {}[/INST]", " {}</s>", ""), "</s>", ("</s>",)),
    "vicuna": (_template("{} ", "USER: {} ", "ASSISTANT: {}</s>", "ASSISTANT:"), "</s>", ("</s>",)),
    "zephyr": (
        _template("<|system|>\n{}</s>\n", "<|user|>\n{}</s>\n", "<|assistant|>\n{}</s>\n", "<|assistant|>\n", ""),
        "</s>", ("</s>", "<|user|>", "<|assistant|>"),
    ),
    "phi4": (
        _template("<|im_start|>system<|im_sep|>{}<|im_end|>", "<|im_start|>user<|im_sep|>{}<|im_end|>",
                  "<|im_start|>assistant<|im_sep|>{}<|im_end|>", "<|im_start|>assistant<|im_sep|>", ""),
        "<|im_end|>", ("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
    ),
    "deepseek": (
        _template("{}\n\n", "User: {}\n\n", "Assistant: {}</s>", "Assistant:"), "</s>", ("</s>",),
    ),
    "glm4": (
        _template("<|system|>\n{}", "<|user|>\n{}", "<|assistant|>\n{}", "<|assistant|>", "[gMASK]<sop>"),
        "<|user|>", ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    ),
    "qwq": (
        _template("<|im_start|>system\n{}<|im_end|>\n", "<|im_start|>user\n{}<|im_end|>\n",
                  "<|im_start|>assistant\n{{ m.content.split('</think>')[-1].lstrip('\n') }}<|im_end|>\n",
                  "<|im_start|>assistant\n<think>\n", ""),
        "<|im_end|>", ("<|im_start|>", "<|im_end|>"),
    ),
    "baichuan2": (
        _template("{}", "<reserved_106>{}", "<reserved_107>{}</s>", "<reserved_107>", ""),
        "</s>", ("</s>", "<reserved_106>", "<reserved_107>"),
    ),
    "minicpm": (_template("{}", "<用户>{}", "<AI>{}</s>", "<AI>"), "</s>", ("</s>",)),
    "exaone": (
        _template("[|system|]{}[|endofturn|]\n", "[|user|]{}\n", "[|assistant|]{}[|endofturn|]\n", "[|assistant|]", ""),
        "[|endofturn|]", ("[|endofturn|]",),
    ),
}  # fmt: skip
"""Name -> template, the token that ends an answer, and the special tokens that it writes."""

TRL = Path(trl.__file__).parent / "chat_templates"
ENDS = {
    "cohere": "<|END_OF_TURN_TOKEN|>", "deepseek": "<\uff5cend▁of▁sentence\uff5c>", "gptoss": "<|return|>",
    "idefics": "<end_of_utterance>", "smolvlm": "<end_of_utterance>", "llava": "</s>", "llama3": "<|eot_id|>",
    "muse": "<|eot|>", "phi3": "<|end|>", "glm4": "<|user|>", "gemma4": "<turn|>", "diffusion_gemma": "<turn|>",
    "gemma": "<end_of_turn>",
}  # fmt: skip
"""Beginning of the name of a template of TRL's package -> the token that ends an answer; else <|im_end|>."""
OTHER_EOS = {"glm4": "<|endoftext|>", "phi3": "<|endoftext|>"}
"""Families whose tokenizers name another token than the one that ends an answer."""
MARK = re.compile(r"<\|[A-Za-z_]+\|?>|<[a-z_]+\|?>|<\uff5c[^\uff5c]+\uff5c>|\[gMASK\]")


@dataclass(frozen=True, slots=True)
class Family:
    tokenizer: Any
    end: int
    """Id of the token that ends an answer."""


def family(name: str) -> Family:
    """One of FAMILIES, or a template of TRL's package by the name of its file."""
    if name in FAMILIES:
        template, end, specials = FAMILIES[name]
    else:
        template = (TRL / f"{name}.jinja").read_text()
        end = next((ENDS[begin] for begin in ENDS if name.startswith(begin)), "<|im_end|>")
        specials = tuple(
            sorted({*MARK.findall(template), end, *OTHER_EOS.values()} - {"<think>", "<tool_call>", "<tools>"})
        )
    made = tokenizer(template)
    made.add_tokens([AddedToken(special, special=True, normalized=False) for special in specials], special_tokens=True)
    made.eos_token = next((OTHER_EOS[begin] for begin in OTHER_EOS if name.startswith(begin)), end)
    return Family(made, made.convert_tokens_to_ids(end))


NAMES = [*FAMILIES, *sorted(path.stem for path in TRL.glob("*.jinja"))]
