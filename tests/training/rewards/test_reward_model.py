"""The reward model as a judge: what transformers alone says of the same texts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from engines.errors import InvalidRequest, TuneserveError
from tests.engines.pt.adapters import save_adapter
from training.rewards import reward_model
from training.rewards.reward_model import RewardModel
from training.rewards.types import Answered

ANSWERS = ["red", "the blue value and one", "numbers", "two three four five", "the"]


@pytest.fixture(scope="session")
def tokenizer(tiny: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny)


@pytest.fixture(scope="session")
def judge(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole reward model."""
    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(tiny, num_labels=1)
    model = AutoModelForSequenceClassification.from_pretrained(tiny, config=config)
    folder = tmp_path_factory.mktemp("judge")
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with a head for `tiny`."""
    torch.manual_seed(2)
    config = AutoConfig.from_pretrained(tiny, num_labels=1)
    model = AutoModelForSequenceClassification.from_pretrained(tiny, config=config)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS", init_lora_weights=False)
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(model, lora).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def answered(tokenizer: Any) -> Callable[..., Answered]:
    """What the policy, `tiny`, answers."""

    def answer(text: str, *, ended: bool = True) -> Answered:
        messages = [{"role": "user", "content": f"say {text}"}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        ids = tokenizer.encode(text) + [tokenizer.eos_token_id] * ended
        return Answered(prompt_ids=prompt, token_ids=ids, text=text, ended=ended, item={"messages": messages})

    return answer


def alone(model: Any, tokenizer: Any, text: str, *, ended: bool = True) -> float:
    """What transformers says of one text."""
    messages = [{"role": "user", "content": f"say {text}"}, {"role": "assistant", "content": text}]
    written = tokenizer.apply_chat_template(messages, tokenize=False)
    ids = tokenizer.encode(written if ended else written[: written.rindex(text) + len(text)])
    with torch.no_grad():
        return float(model(torch.tensor([ids])).logits.item())


def test_a_whole_reward_model_says_what_transformers_says(
    judge: Path, tokenizer: Any, answered: Callable[..., Answered], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward_model, "TOKENS", 60)  # several batches
    reward = RewardModel.load(str(judge), policy_tokenizer=tokenizer)
    plain = AutoModelForSequenceClassification.from_pretrained(judge)
    told = [alone(plain, tokenizer, text) for text in ANSWERS]
    assert reward([answered(text) for text in ANSWERS]) == pytest.approx(told, abs=1e-5)
    cut = [alone(plain, tokenizer, text, ended=False) for text in ANSWERS]
    assert reward([answered(text, ended=False) for text in ANSWERS]) == pytest.approx(cut, abs=1e-5)
    assert not any(weight.requires_grad for weight in reward.model.parameters())


def test_an_adapter_with_a_head_makes_a_reward_model_of_its_base(
    tiny: Path, adapter: Path, tokenizer: Any, answered: Callable[..., Answered]
) -> None:
    reward = RewardModel.load(str(tiny), adapters=[str(adapter)], policy_tokenizer=tokenizer)
    config = AutoConfig.from_pretrained(tiny, num_labels=1)
    plain = AutoModelForSequenceClassification.from_pretrained(tiny, config=config)
    plain = PeftModel.from_pretrained(plain, adapter).eval()
    told = [alone(plain, tokenizer, text) for text in ANSWERS]
    assert reward([answered(text) for text in ANSWERS]) == pytest.approx(told, abs=1e-5)


def test_a_reward_model_with_another_tokenizer_reads_the_text(
    judge: Path, tiny: Path, tmp_path: Path, tokenizer: Any, answered: Callable[..., Answered]
) -> None:
    own = AutoTokenizer.from_pretrained(judge)
    own.chat_template = (
        "{% for message in messages %}[{{ message.role }}]{{ message.content }}<eos>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    model = AutoModelForSequenceClassification.from_pretrained(judge)
    model.save_pretrained(tmp_path)
    own.save_pretrained(tmp_path)
    reward = RewardModel.load(str(tmp_path), policy_tokenizer=tokenizer)
    for ended in (True, False):
        told = [alone(model, own, text, ended=ended) for text in ANSWERS]
        assert reward([answered(text, ended=ended) for text in ANSWERS]) == pytest.approx(told, abs=1e-5)


def test_a_row_without_messages_is_read_as_text(judge: Path, tmp_path: Path, tokenizer: Any) -> None:
    own = AutoTokenizer.from_pretrained(judge)
    own.chat_template = None
    model = AutoModelForSequenceClassification.from_pretrained(judge)
    model.save_pretrained(tmp_path)
    own.save_pretrained(tmp_path)
    reward = RewardModel.load(str(tmp_path), policy_tokenizer=tokenizer)
    text = Answered(
        prompt_ids=tokenizer.encode("one two"), token_ids=tokenizer.encode(" three"), text=" three", ended=True,
        item={"prompt": "one two"},
    )  # fmt: skip
    ids = [*own.encode("one two three"), own.eos_token_id]
    with torch.no_grad():
        told = model(torch.tensor([ids])).logits.item()
    assert reward([text]) == pytest.approx([told], abs=1e-5)


def test_what_is_no_reward_model_is_refused(tiny: Path, judge: Path, tmp_path: Path, tokenizer: Any) -> None:
    def refusal(model: Path, *adapters: Path) -> TuneserveError:
        with pytest.raises(TuneserveError) as refused:
            RewardModel.load(str(model), adapters=[*map(str, adapters)], policy_tokenizer=tokenizer)
        return refused.value

    headless = refusal(tiny)
    assert (headless.param, "has no head" in headless.message) == ("reward_model", True)
    causal = refusal(tiny, save_adapter(tiny, tmp_path / "causal"))
    assert (causal.param, "has no head" in causal.message) == ("reward_model", True)
    gone = refusal(tiny, tmp_path / "gone")
    assert gone.param == "reward_adapters"
    classes = AutoModelForSequenceClassification.from_pretrained(
        tiny, config=AutoConfig.from_pretrained(tiny, num_labels=3)
    )
    classes.save_pretrained(tmp_path / "classes")
    tokenizer.save_pretrained(tmp_path / "classes")
    several = refusal(tmp_path / "classes")
    assert (several.param, "3 labels" in several.message) == ("reward_model", True)
    assert isinstance(several, TuneserveError) and not isinstance(several, InvalidRequest)
