"""Models that classify, and adapters with a head of their own: each answer is what transformers or PEFT says, alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, PreTrainedConfig

from engines.adapters.spec import WEIGHTS
from engines.errors import EngineFailure, InvalidAdapter, UnsupportedModel, UnsupportedParameter
from engines.pt.core import EngineCore
from engines.pt.runner import ModelRunner
from engines.types import GenerationRequest, Head, PoolingRequest
from tests.engines.pt.adapters import classify_with_peft, load, save_adapter, save_head_adapter, spec_of
from tests.engines.pt.conftest import GetRunner
from tests.engines.pt.driving import core_of, prompt, request, run, settings
from tests.engines.pt.test_decoder import KNOWN
from tests.engines.pt.tiny import CONFIGS, EOS, save

Requests = list[GenerationRequest | PoolingRequest]
LENGTHS = (1, 4, 13, 40, 90)


def classify(ids: list[int], request_id: str = "c", adapter: str | None = None) -> PoolingRequest:
    return PoolingRequest(request_id=request_id, prompt_ids=ids, task="classify", adapter=adapter)


def classifier(folder: Path, name: str = "llama", *, num_labels: int = 3, **changes: Any) -> Path:
    """Write a tiny model with a random head."""
    config: PreTrainedConfig = CONFIGS[name]()
    config.num_labels = num_labels
    for field, value in changes.items():
        setattr(config, field, value)
    return save(config, folder, tokenizer=True, kind=AutoModelForSequenceClassification)


def expected_logits(folder: Path, ids: list[int], **changes: Any) -> torch.Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager", **changes).eval()
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0]
    return logits


def answered(core: EngineCore, requests: Requests) -> dict[str, list[float]]:
    answers = run(core, requests)
    assert all(answer.error is None for answer in answers.values())
    return {request_id: answer.pooled or [] for request_id, answer in answers.items()}


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "opt", "gpt-neox", "qwen3", "gemma2", "gemma3", "mistral", "phi3", "olmo2", "smollm3"]
)
def test_the_logits_are_those_of_a_plain_forward_pass_though_prompts_come_in_pieces(name: str, tmp_path: Path) -> None:
    folder = classifier(tmp_path, name)
    core = core_of(ModelRunner(settings(folder)), max_num_batched_tokens=16)
    assert (core.runner._decoder is not None) == (name in KNOWN)
    prompts = [prompt(length) for length in LENGTHS]
    found = answered(core, [classify(ids, f"c{at}") for at, ids in enumerate(prompts)])
    for at, ids in enumerate(prompts):
        assert found[f"c{at}"] == pytest.approx(expected_logits(folder, ids).tolist(), abs=1e-4)


def test_a_model_in_bfloat16_is_judged_in_float32(tmp_path: Path) -> None:
    folder = classifier(tmp_path)
    core = core_of(ModelRunner(settings(folder, dtype="bfloat16")))
    found = torch.tensor(answered(core, [classify(prompt(13))])["c"])
    assert not torch.equal(found, found.bfloat16().float())
    torch.testing.assert_close(found, expected_logits(folder, prompt(13)), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("padding", [EOS, None])
def test_a_text_that_ends_with_padding_is_classified_as_transformers_does_it(
    padding: int | None, tmp_path: Path
) -> None:
    folder = classifier(tmp_path, pad_token_id=padding, num_labels=1)
    core = core_of(ModelRunner(settings(folder)))
    head = core.runner.head
    assert head is not None and head.padding == padding
    for ids in ([*prompt(9), EOS], [*prompt(9), EOS, EOS], [EOS, *prompt(9)], [EOS, EOS]):
        assert answered(core, [classify(head.read(ids))])["c"] == pytest.approx(
            expected_logits(folder, ids).tolist(), abs=1e-4
        )


def test_a_prompt_that_was_cached_has_the_same_logits(tmp_path: Path) -> None:
    core = core_of(ModelRunner(settings(classifier(tmp_path))))
    first = answered(core, [classify(prompt(40))])["c"]
    assert answered(core, [classify(prompt(40))])["c"] == pytest.approx(first, abs=1e-5)
    assert core.scheduler.prefix_hits


def test_a_model_in_bfloat16_classifies(tmp_path: Path) -> None:
    folder = classifier(tmp_path)
    core = core_of(ModelRunner(settings(folder, dtype="bfloat16")))
    found = torch.tensor(answered(core, [classify(prompt(40))])["c"])
    expected = expected_logits(folder, prompt(40))
    assert (found - expected).norm() / expected.norm() < 0.1


def test_labels_and_their_meaning_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    folder = classifier(tmp_path, id2label={1: "bad", 0: "good"}, problem_type="multi_label_classification")
    head = ModelRunner(settings(folder)).head
    assert head == Head(labels=("good", "bad"), problem_type="multi_label_classification", padding=0)


def test_a_model_that_classifies_generates_nothing_and_embeds(tmp_path: Path) -> None:
    core = core_of(ModelRunner(settings(classifier(tmp_path))))
    with pytest.raises(UnsupportedParameter, match="generates no text"):
        core.add(request(prompt(5)))
    embedded = answered(core, [PoolingRequest(request_id="e", prompt_ids=prompt(5))])["e"]
    assert len(embedded) == 32 and torch.tensor(embedded).norm().item() == pytest.approx(1, abs=1e-5)


def test_a_causal_model_refuses_to_classify(runner: GetRunner) -> None:
    with pytest.raises(UnsupportedParameter, match="the model has no head"):
        core_of(runner("llama")).add(classify(prompt(5)))


def test_a_checkpoint_without_a_head_is_refused_where_one_is_asked_for(folder: Callable[[str], Path]) -> None:
    with pytest.raises(UnsupportedModel, match="no head named 'score'") as error:
        ModelRunner(settings(folder("llama"), task_type="seq_cls"))
    assert error.value.param == "task_type"


# ---- adapters with heads


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "qwen3"])
def test_heads_of_adapters_classify_in_one_batch_with_the_base_that_chats(
    name: str, folder: Callable[[str], Path], runner: GetRunner, tmp_path: Path
) -> None:
    base = folder(name)
    reward = save_head_adapter(base, tmp_path / "reward", seed=1)
    topics = save_head_adapter(base, tmp_path / "topics", seed=2, num_labels=4, r=6)
    plain = save_adapter(base, tmp_path / "plain", seed=3)
    core = core_of(runner(name), max_num_batched_tokens=16)
    chats = [request(prompt(11, at), f"g{at}", adapter=(None, "plain")[at % 2]) for at in range(4)]
    alone = run(core_of(runner(name)), [chats[0]])["g0"].tokens
    load(core, reward=reward, topics=topics, plain=plain)
    asked = [classify(prompt(n), f"r{n}", "reward") for n in LENGTHS] + [
        classify(prompt(n), f"t{n}", "topics") for n in LENGTHS
    ]
    answers = run(core, [*asked, *chats])
    for n in LENGTHS:
        assert answers[f"r{n}"].pooled == pytest.approx(classify_with_peft(base, reward, 1, prompt(n)), abs=2e-4)
        assert answers[f"t{n}"].pooled == pytest.approx(classify_with_peft(base, topics, 4, prompt(n)), abs=2e-4)
    assert answers["g0"].tokens == alone and all(len(answers[f"g{at}"].tokens) > 0 for at in range(4))


def test_an_adapter_of_a_model_that_classifies_brings_a_head_of_as_many_labels_as_it_likes(tmp_path: Path) -> None:
    folder = classifier(tmp_path / "model")
    adapter = save_head_adapter(folder, tmp_path / "adapter", num_labels=5)
    core = core_of(ModelRunner(settings(folder)))
    load(core, own=adapter)
    found = answered(core, [classify(prompt(40), adapter="own"), classify(prompt(40), "base")])
    assert found["c"] == pytest.approx(classify_with_peft(folder, adapter, 5, prompt(40)), abs=2e-4)
    assert found["base"] == pytest.approx(expected_logits(folder, prompt(40)).tolist(), abs=1e-4)


def test_an_adapter_classifies_or_generates_as_it_was_trained(
    folder: Callable[[str], Path], runner: GetRunner, tmp_path: Path
) -> None:
    core = core_of(runner("llama"))
    head = save_head_adapter(folder("llama"), tmp_path / "head")
    load(core, head=head, plain=save_adapter(folder("llama"), tmp_path / "plain"))
    with pytest.raises(UnsupportedParameter, match="'head' has a head that classifies"):
        core.add(request(prompt(5), adapter="head"))
    with pytest.raises(UnsupportedParameter, match="'plain' has no head"):
        core.add(classify(prompt(5), adapter="plain"))
    core.unload_adapter("head", core.step())
    load(core, head=save_adapter(folder("llama"), tmp_path / "again"))
    assert run(core, [request(prompt(5), adapter="head")])["r"].tokens, "a slot keeps no head of one that has left"


def test_what_a_head_says_of_itself(runner: GetRunner, folder: Callable[[str], Path], tmp_path: Path) -> None:
    reward = spec_of(runner("llama"), save_head_adapter(folder("llama"), tmp_path / "reward"))
    assert reward.head == Head(labels=("LABEL_0",), problem_type="regression", padding=0)
    topics = spec_of(runner("llama"), save_head_adapter(folder("llama"), tmp_path / "topics", num_labels=3))
    assert topics.head == Head(labels=("LABEL_0", "LABEL_1", "LABEL_2"), padding=0)


def test_numbers_that_are_not_finite_fail_their_request_alone(
    folder: Callable[[str], Path], runner: GetRunner, tmp_path: Path
) -> None:
    adapter = save_head_adapter(folder("llama"), tmp_path)
    tensors = load_file(adapter / WEIGHTS)
    save_file({name: t.sign() * 3e38 if "score" in name else t for name, t in tensors.items()}, adapter / WEIGHTS)
    core = core_of(runner("llama"))
    load(core, huge=adapter)
    answers = run(core, [classify(prompt(9), "huge", "huge"), request(prompt(9), "chat")])
    assert isinstance(answers["huge"].error, EngineFailure) and "not finite" in answers["huge"].error.message
    assert answers["chat"].tokens


def test_a_head_of_another_width_is_refused(runner: GetRunner, tmp_path: Path) -> None:
    wide = CONFIGS["llama"]()
    wide.hidden_size = 64
    adapter = save_head_adapter(save(wide, tmp_path / "wide"), tmp_path / "adapter")
    with pytest.raises(InvalidAdapter, match=r"\[labels, 32\]"):
        spec_of(runner("llama"), adapter)
