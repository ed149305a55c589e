"""What the parts of an answer weigh in the loss, token by token, by the weightings for agents and by one's own."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from engines.errors import InvalidRequest, UnsupportedParameter
from server.fine_tuning.parameters import check_parameters
from server.jobs.request import outside_choices
from tests.training.data.tokenizers import CHATML, tokenizer
from tests.training.optimizers.steps import tiny_model
from training.data.encode import IGNORED, Encoder
from training.data.loss_scale import load_loss_scale
from training.data.packing import packed, samples_of
from training.losses.answers import answer_loss
from training.methods import METHODS
from training.params.sft import SftParams
from training.trainers.batches.collate import Packed, Padded

REACT = "Hm. Thought: I look.\nAction: see\nAction Input: x\nObservation: red\nThought: ok\nFinal Answer: red"


def encoder(loss_scale: str, **params: Any) -> Encoder:
    return Encoder(SftParams(loss_scale=loss_scale, **params), tokenizer(CHATML), "answers", None)


def talk(*turns: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]}


def runs(sample: dict[str, Any]) -> list[tuple[str, float]]:
    """Tokens that weigh the same, one behind another, as text with what they weigh."""
    both = zip(sample["input_ids"], sample["loss_scale"], strict=True)
    grouped = [(weight, [token for token, _ in some]) for weight, some in groupby(both, key=lambda pair: pair[1])]
    return [(tokenizer().decode(tokens), weight) for weight, tokens in grouped]


def weighed(loss_scale: str, *turns: str) -> list[tuple[str, float]]:
    """Those of the last answer."""
    (sample,) = encoder(loss_scale).encode(talk(*turns))
    assert [label == IGNORED for label in sample["labels"]] == [weight == 0 for weight in sample["loss_scale"]]
    start = max(i for i, (text, _) in enumerate(runs(sample)) if text.endswith("<|im_start|>assistant\n")) + 1
    return runs(sample)[start:]


def own(folder: Path, content: Any) -> str:
    (folder / "own.json").write_text(json.dumps(content))
    return str(folder / "own.json")


def test_of_an_agents_answer_calls_weigh_double_and_what_tools_said_nothing() -> None:
    assert weighed("react", "hi", REACT) == [
        ("Hm. Thought: I look.\n", 1),
        ("Action: see\nAction Input: x\nObservation:", 2),
        (" red\n", 0),
        ("Thought: ok\nFinal Answer: red<|im_end|>\n", 1),
    ]


def test_an_answer_that_ends_in_what_weighs_nothing_is_still_learned_to_end() -> None:
    assert weighed("react", "hi", "Action: see\nObservation: red")[-2:] == [(" red", 0), ("<|im_end|>\n", 1)]


def test_alpha_umi_weighs_who_is_next() -> None:
    answer = "Thought: who?\nNext: caller."
    assert weighed("alpha_umi", "hi", answer) == [("Thought: who?\n", 1), ("Next: caller.", 2), ("<|im_end|>\n", 1)]
    assert weighed("react", "hi", answer) == [(f"{answer}<|im_end|>\n", 1)]


def test_agentflan_weighs_what_follows_its_words_and_answers_to_its_questions() -> None:
    assert weighed("agentflan", "hi", "Tool:see") == [("Tool:", 1), ("see", 3), ("<|im_end|>\n", 1)]
    asked = "What is the value of x?"
    assert weighed("agentflan", asked, "Thought: 3") == [("Thought: 3", 3), ("<|im_end|>\n", 1)]


def test_qwen_weighs_its_marks() -> None:
    answer = "See ✿FUNCTION✿: now\n✿ARGS✿: {}\n✿RESULT✿: 3 ✿RETURN✿: Three."
    assert weighed("qwen", "hi", answer) == [
        ("See ", 1),
        ("✿FUNCTION✿: now\n✿ARGS✿: {}\n✿RESULT✿:", 2),
        (" 3 ", 0),
        ("✿RETURN✿: Three.<|im_end|>\n", 1),
    ]


def test_every_answer_of_a_conversation_is_weighed() -> None:
    (sample,) = encoder("react").encode(talk("a", "Action: b", "c", "Observation: d"))
    heavy = [text for text, weight in runs(sample) if weight == 2]
    assert heavy == ["Action: b", "Observation:"]


def test_a_file_of_ones_own_weighs_words_patterns_and_questions(tmp_path: Path) -> None:
    file = own(tmp_path, {"<b>.*?</b>": [3.0], "Note:": [0.5, 0.25]})
    assert weighed(file, "hi", "x<b>y</b>z\nNote: w <b>") == [
        ("x", 1), ("<b>y</b>", 3), ("z\n", 1), ("Note:", 0.5), (" w <b>", 0.25), ("<|im_end|>\n", 1),
    ]  # fmt: skip
    file = own(tmp_path, {"response": {"Note:": [2, 2]}, "query": {"twice": 2, "never": [0]}})
    assert weighed(file, "say it twice", "so") == [("so", 2), ("<|im_end|>\n", 1)]
    assert weighed(file, "hi", "Note: so") == [("Note: so", 2), ("<|im_end|>\n", 1)]
    (sample,) = encoder(file).encode(talk("never", "Note: so"))
    assert runs(sample)[-2:] == [
        ("<|im_start|>user\nnever<|im_end|>\n<|im_start|>assistant\nNote: so", 0),
        ("<|im_end|>\n", 1),
    ]


def test_a_text_with_its_prompt_is_weighed_too(tmp_path: Path) -> None:
    file = own(tmp_path, {"so": [2, 2]})
    (sample,) = encoder(file).encode({"prompt": "hi ", "completion": "is so"})
    assert runs(sample)[0][1] == 0
    assert [weight for _, weight in runs(sample)] == [0, 1, 2, 1]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([1], "must be an object"),
        ({"x": [1, 2, 3]}, "the weight of 'x' must be one or two numbers"),
        ({"x": ["y"]}, "the weight of 'x' must be one or two numbers"),
        ({"x": [-1, 1]}, "0 or more"),
        ({"x": [True, 1]}, "the weight of 'x' must be"),
        ({"response": {}, "query": {"x": [1, 2]}}, "the weight of 'x' must be a number"),
        ({"(": [1]}, "own.json cannot be read"),
    ],
    ids=str,
)
def test_a_file_that_says_no_weights_is_refused(tmp_path: Path, content: Any, told: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        load_loss_scale(own(tmp_path, content))
    assert told in caught.value.message and caught.value.param == "loss_scale"


def test_a_name_that_nothing_has_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InvalidRequest, match="default, last_round, all, react, alpha_umi, agentflan, qwen"):
        load_loss_scale("reakt")


def test_clients_of_the_api_choose_by_name_alone() -> None:
    sft = METHODS["sft"]
    check_parameters({"loss_scale": "react"}, sft, max_model_len=64)
    with pytest.raises(UnsupportedParameter, match="'/etc/passwd' is not supported here; choose default"):
        check_parameters({"loss_scale": "/etc/passwd"}, sft, max_model_len=64)
    said = next(each for each in SftParams.model_fields["loss_scale"].metadata if hasattr(each, "api_choices"))
    assert outside_choices(said, "react") is None
    assert outside_choices(said, "x.json")


def test_the_loss_is_the_mean_over_learned_tokens_of_what_each_loses_times_its_weight() -> None:
    samples = [encoder("react").encode(talk("hi", answer))[0] for answer in (REACT, "Action: see")]
    samples = [{name: values[:100] for name, values in sample.items()} for sample in samples]
    for sample in samples:
        sample["input_ids"] = [token % 300 for token in sample["input_ids"]]
        sample["labels"] = [label if label == IGNORED else label % 300 for label in sample["labels"]]
    model = tiny_model().eval()
    total, learned = 0.0, 0
    for sample in samples:
        ids, labels = torch.tensor([sample["input_ids"]]), torch.tensor(sample["labels"])
        losses = cross_entropy(model(input_ids=ids).logits[0, :-1], labels[1:], reduction="none", ignore_index=IGNORED)
        total += (losses * torch.tensor(sample["loss_scale"])[1:]).sum().item()
        learned += int((labels[1:] != IGNORED).sum())

    row = packed(samples)
    assert list(samples_of(row)) == samples
    for batch in (Padded(0)(samples), Padded(0, "left")(samples), Packed(0)([row])):
        assert answer_loss(model, batch, None).loss.item() == pytest.approx(total / learned, abs=1e-4)
        assert answer_loss(model, batch, 2 * learned).loss.item() == pytest.approx(total / learned / 2, abs=1e-4)
