"""OpenAI's graders judge as its guide says."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from engines.errors import EngineFailure, InvalidRequest
from training.params.graders import OneGrader, parse_grader
from training.rewards.graders import similarity as similarities
from training.rewards.graders.grading import Graded, Grading, sample_of
from training.rewards.graders.judging import Question, Reply, TokenUsage

STRING_CHECK = {"type": "string_check", "name": "check", "input": "{{sample.output_text}}", "operation": "eq"}
JUDGE = {"type": "score_model", "name": "judge", "model": "m", "input": [{"role": "user", "content": "Grade."}]}
LABELS = {**JUDGE, "type": "label_model", "labels": ["good", "bad"], "passing_labels": ["good"]}


def parsed(**grader: Any) -> OneGrader:
    return parse_grader(grader)


def nobody(question: Question) -> Reply:
    raise AssertionError("no model is to be asked")


def answering(text: str) -> Callable[[Question], Reply]:
    return lambda question: Reply(text=text, usage=TokenUsage(prompt_tokens=5, completion_tokens=2))


def grade(
    grader: dict[str, Any], answer: str, item: dict[str, Any] | None = None, ask: Callable[[Question], Reply] = nobody
) -> Graded:
    grading = Grading(parsed(**grader), ask)
    try:
        return grading(sample_of(answer), item or {})
    finally:
        grading.close()


# ---- string_check


@pytest.mark.parametrize(
    ("operation", "answer", "reference", "reward"),
    [
        ("eq", "Paris", "Paris", 1),
        ("eq", "paris", "Paris", 0),
        ("ne", "paris", "Paris", 1),
        ("ne", "Paris", "Paris", 0),
        ("like", "It is Paris.", "Paris", 1),
        ("like", "It is paris.", "Paris", 0),
        ("ilike", "It is PARIS.", "Paris", 1),
        ("ilike", "It is Rome.", "Paris", 0),
    ],
)
def test_string_check_compares(operation: str, answer: str, reference: str, reward: float) -> None:
    found = grade({**STRING_CHECK, "operation": operation, "reference": "{{item.label}}"}, answer, {"label": reference})
    assert (found.reward, found.error) == (reward, None)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ item.answers[1].text }}", "b"),
        ('{{item["a key"]}}', "k"),
        ("{{item.number}} and {{item.number}}", "1.5 and 1.5"),
        ("{{item.list}}", '["é", null]'),
        ("{{sample.output_json.city}}", "Paris"),
        ("{{sample.choices[0].message.content}}", '{"city": "Paris"}'),
        ("{{sample.choices[0].finish_reason}}", "stop"),
        ("{city} {{{item.number}}}", "{city} {1.5}"),
    ],
)
def test_a_reference_stands_for_a_part_of_the_row_or_of_the_answer(template: str, text: str) -> None:
    item = {"answers": [{}, {"text": "b"}], "a key": "k", "number": 1.5, "list": ["é", None]}
    found = grade({**STRING_CHECK, "input": template, "reference": text}, '{"city": "Paris"}', item)
    assert (found.reward, found.error) == (1, None)


@pytest.mark.parametrize(
    ("template", "kind", "told"),
    [
        ("{{item.label}}", "invalid_variable_error", "{{item.label}}: there is no 'label'"),
        ("{{item.list[3]}}", "invalid_variable_error", "{{item.list[3]}}: there is no 3"),
        ("{{item.list.a}}", "invalid_variable_error", "there is no 'a'"),
        ("{{sample.output_tools[0].function.name}}", "invalid_variable_error", "there is no 0"),
        ("{{sample.output_json.city}}", "sample_parse_error", "{{sample.output_json.city}}: the sample is not JSON"),
    ],
)
def test_a_reference_that_leads_nowhere_is_an_error_that_names_it(template: str, kind: str, told: str) -> None:
    found = grade({**STRING_CHECK, "reference": template}, "Paris", {"list": [1]})
    assert found.reward == 0 and found.error is not None
    assert found.error.kind == kind and told in found.error.details


@pytest.mark.parametrize("template", ["{{item}}", "{{ }}", "{{label}}", "{{item.a|upper}}", "{{sample.text}}"])
def test_what_is_no_reference_is_refused_before_anything_is_graded(template: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Grading(parsed(**STRING_CHECK, reference=template), nobody)
    assert refused.value.param == "reference" and template.strip("{} ") in refused.value.message


def test_references_do_not_fill_the_memory() -> None:
    found = grade({**STRING_CHECK, "reference": "{{item.a}}" * 2000}, "a", {"a": "a" * 100_000})
    assert found.error is not None and "longer than" in found.error.details


# ---- text_similarity


@pytest.mark.parametrize(
    ("metric", "reward"),
    [
        ("fuzzy_match", 1 - 18 / 45),
        ("gleu", 6 / 14),
        ("rouge_1", 0.6),
        ("rouge_2", 0.25),
        ("rouge_3", 0),
        ("rouge_4", 0),
        ("rouge_5", 0),
        ("rouge_l", 0.6),
    ],
)
def test_each_metric_has_its_number(metric: str, reward: float) -> None:
    texts = {"input": "{{sample.output_text}}", "reference": "{{item.reference}}"}
    grader = {"type": "text_similarity", "name": "s", "evaluation_metric": metric, **texts}
    found = grade(grader, "fuzzy wuzzy was a bear", {"reference": "fuzzy wuzzy had no hair"})
    assert found.error is None
    assert grade(grader, "the same words", {"reference": "the same words"}).reward >= (metric < "rouge_4")
    assert found.reward == pytest.approx(_by_the_library(metric)), reward


def _by_the_library(metric: str) -> float:
    from nltk.translate.gleu_score import sentence_gleu
    from rapidfuzz.distance import Indel
    from rouge_score.rouge_scorer import RougeScorer

    text, reference = "fuzzy wuzzy was a bear", "fuzzy wuzzy had no hair"
    if metric == "fuzzy_match":
        return Indel.normalized_similarity(text, reference)
    if metric == "gleu":
        return sentence_gleu([reference.split()], text.split())
    name = metric.replace("_", "").replace("l", "L")
    return RougeScorer([name]).score(reference, text)[name].fmeasure


def test_bleu_is_sacrebleus() -> None:
    from sacrebleu import sentence_bleu

    text, reference = "the cat sat on the mat today", "the cat sat on the mat yesterday"
    assert similarities.similarity("bleu", text, reference) == pytest.approx(
        sentence_bleu(text, [reference]).score / 100
    )
    assert similarities.similarity("bleu", text, text) == pytest.approx(1)


@pytest.mark.parametrize("metric", ["fuzzy_match", "bleu", "gleu", "rouge_1", "rouge_l"])
def test_an_empty_answer_is_like_nothing(metric: str) -> None:
    assert similarities.similarity(metric, "", "some words") == 0


def test_cosine_is_for_evals() -> None:
    with pytest.raises(InvalidRequest, match="cosine compares embeddings"):
        Grading(parsed(type="text_similarity", name="s", input="", reference="", evaluation_metric="cosine"), nobody)


def test_meteor_needs_wordnet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarities, "_wordnet", lambda: None)
    with pytest.raises(InvalidRequest, match="downloader wordnet"):
        similarities.check_metric("meteor")


def test_with_wordnet_meteor_is_nltks(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithoutSynonyms:
        def synsets(self, word: str) -> list[Any]:
            return []

    monkeypatch.setattr(similarities, "_wordnet", WithoutSynonyms)
    text = "on the mat sat the cat"
    assert similarities.similarity("meteor", text, "the cat sat on the mat") == pytest.approx(0.5)
    assert similarities.similarity("meteor", text, text) == pytest.approx(1 - 0.5 / 6**3)


def test_texts_that_would_take_long_to_compare_have_no_grade() -> None:
    grader = {"type": "text_similarity", "name": "s", "input": "{{sample.output_text}}", "reference": "a"}
    found = grade({**grader, "evaluation_metric": "fuzzy_match"}, "a" * 40_000)
    assert found.error is not None and found.error.kind == "truncated_observation_error"


# ---- models that judge


def test_a_model_is_asked_with_the_answer_and_the_row_for_a_number() -> None:
    asked: list[Question] = []

    def ask(question: Question) -> Reply:
        asked.append(question)
        return Reply(text=json.dumps({"steps": [], "result": 0.75}))

    parts = [{"type": "input_text", "text": "{{item.label}}"}, "or {{sample.output_text}}"]
    input = [{"role": "system", "content": "Grade."}, {"role": "user", "content": parts, "type": "message"}]
    sampling = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "max_completions_tokens": 99}
    found = grade({**JUDGE, "input": input, "sampling_params": sampling}, "Rome", {"label": "Paris"}, ask)
    (question,) = asked
    assert found.reward == 0.75
    assert question.model == "m" and question.max_tokens == 99 and question.sampling.temperature == 0.5
    texts = [{"type": "text", "text": "Paris"}, {"type": "text", "text": "or Rome"}]
    assert question.messages == [{"role": "system", "content": "Grade."}, {"role": "user", "content": texts}]
    assert question.schema["properties"]["result"] == {"type": "number"}


@pytest.mark.parametrize(("said", "reward"), [(7, 5), (-1, 2), (3.5, 3.5)])
def test_a_score_is_brought_into_its_range(said: float, reward: float) -> None:
    found = grade({**JUDGE, "range": [2, 5]}, "a", ask=answering(json.dumps({"result": said})))
    assert (found.reward, found.error) == (reward, None)
    assert found.usage == {"m": TokenUsage(prompt_tokens=5, completion_tokens=2)}


@pytest.mark.parametrize("said", ["", "0.5", '{"steps": [', '{"result": "1"}', '{"result": true}', "[" * 5000])
def test_a_reply_without_a_number_is_an_error_and_0(said: str) -> None:
    found = grade({**JUDGE, "range": [1, 2]}, "a", ask=answering(said))
    assert found.reward == 0 and found.error is not None and found.error.kind == "model_grader_parse_error"
    assert found.usage["m"].total_tokens == 7


def test_a_model_that_cannot_answer_is_an_error() -> None:
    def fails(question: Question) -> Reply:
        raise EngineFailure("It broke.")

    found = grade(JUDGE, "a", ask=fails)
    assert found.error is not None and found.error.kind == "model_grader_server_error"
    assert found.error.details == "'m': It broke."


@pytest.mark.parametrize(("label", "reward"), [("good", 1), ("bad", 0)])
def test_a_label_passes_or_not(label: str, reward: float) -> None:
    assert grade(LABELS, "a", ask=answering(json.dumps({"result": label}))).reward == reward


# ---- multi


@pytest.mark.parametrize("form", ["named", "list", "one"])
def test_a_formula_combines_graders(form: str) -> None:
    city = {**STRING_CHECK, "name": "city", "reference": "Paris"}
    other = {**STRING_CHECK, "name": "other", "reference": "Rome"}
    graders: Any = {"named": {"city": city, "other": other}, "list": [city, other], "one": city}[form]
    formula = "city / 2" if form == "one" else "0.5 * city + 0.25 * other"
    found = grade({"type": "multi", "name": "both", "graders": graders, "calculate_output": formula}, "Paris")
    assert found.reward == 0.5
    assert {name: part.reward for name, part in found.parts.items()} == (
        {"city": 1} if form == "one" else {"city": 1, "other": 0}
    )


def test_of_a_multi_an_error_is_that_of_its_grader_alone() -> None:
    graders = {"a": {**STRING_CHECK, "reference": "x"}, "b": {**STRING_CHECK, "reference": "{{item.label}}"}}
    found = grade({"type": "multi", "name": "m", "graders": graders, "calculate_output": "a + b"}, "x")
    assert found.reward == 1 and found.error is None
    assert [error.kind for error in found.errors()] == ["invalid_variable_error"]


def test_a_formula_without_a_value_is_an_error_and_0() -> None:
    graders = {"a": {**STRING_CHECK, "reference": "x"}}
    found = grade({"type": "multi", "name": "m", "graders": graders, "calculate_output": "1 / a"}, "y")
    assert found.reward == 0 and found.error is not None and found.error.kind == "formula_parse_error"


# ---- what is refused


@pytest.mark.parametrize(
    ("grader", "told"),
    [
        ({"type": "endpoint", "url": "http://x"}, "tag 'endpoint' found"),
        ({"type": "nonsense"}, "nonsense"),
        ({**STRING_CHECK, "reference": "a", "operation": "neq"}, "'eq', 'ne', 'like' or 'ilike'"),
        ({**STRING_CHECK, "reference": "a", "nonsense": 1}, "Extra inputs"),
        ({**STRING_CHECK, "reference": 1}, "string"),
        ({**JUDGE, "range": [1, 0]}, "the first number is the lowest score"),
        ({**JUDGE, "input": []}, "at least 1 item"),
        ({**LABELS, "passing_labels": ["fine"]}, "'fine' is none of the labels"),
        (
            {**JUDGE, "input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "'input_text', 'output_text' or 'text'",
        ),
        ({"type": "multi", "graders": {"m": {"type": "multi"}}, "calculate_output": "m"}, "multi"),
        ({"type": "python", "source": "x" * 256_001}, "256000"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(grader: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        parsed(**grader)


def test_a_multi_names_the_grader_whose_reference_is_none() -> None:
    graders = {"a": {**STRING_CHECK, "reference": "{{nowhere}}"}}
    with pytest.raises(InvalidRequest) as refused:
        Grading(parsed(type="multi", name="m", graders=graders, calculate_output="a"), nobody)
    assert refused.value.param == "graders.a.reference"


def test_a_python_grader_without_a_function_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no function grade"):
        Grading(parsed(type="python", name="p", source="x = 1"), nobody)
