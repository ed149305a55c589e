"""Guesses at the next tokens make outputs come in fewer steps, and change nothing about them."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from engines.checkpoint.loading import load_tokenizer
from engines.pt.config import PromptLookup, PtConfig
from engines.pt.core import EngineCore
from engines.pt.outputs.requests import StepReport
from engines.pt.runner import ModelRunner, Segment, StepResult
from engines.types import FinishReason, GenerationRequest, Structured
from tests.engines.pt.adapters import load, save_adapter
from tests.engines.pt.conftest import GetRunner, Grammars
from tests.engines.pt.driving import BLOCK_SIZE, Answer, core_of, prompt, request, run
from tests.engines.pt.tiny import VOCAB_SIZE

LOOKUP = PromptLookup(num_speculative_tokens=8, prompt_lookup_min=1, prompt_lookup_max=4)
"""Looks up single tokens: there are many guesses then, and many of them wrong."""


class Counted:
    """A runner that remembers how many tokens of each sequence a step computed."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self.steps: list[list[int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def step(self, segments: list[Segment]) -> StepResult:
        self.steps.append([len(segment.token_ids) for segment in segments])
        return self._runner.step(segments)


@pytest.fixture
def counted(runner: GetRunner) -> Counted:
    return Counted(runner("llama"))


def repeating(about: int = 0) -> list[int]:
    """A prompt that says the same three times."""
    return prompt(10, about) * 3


def asked(name: str = "r", *, about: int = 0, **changes: Any) -> GenerationRequest:
    return request(repeating(about), name, **{"ignore_eos": True, "max_new_tokens": 40} | changes)


def outputs(core: EngineCore, requests: list[GenerationRequest]) -> dict[str, Any]:
    answers = run(core, requests)
    assert not any(answer.error for answer in answers.values())
    return {name: answer.outputs for name, answer in answers.items()}


def tokens(runner: GetRunner, one: GenerationRequest) -> list[int]:
    """What comes without guesses."""
    return run(core_of(runner("llama")), [one])[one.request_id].tokens


# ---- what comes is the same


SAMPLED: dict[str, Any] = {"temperature": 1.0, "seed": 11}
CHOICES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "with logprobs": {"logprobs": 3},
    "sampled": SAMPLED,
    "sampled from few": {"temperature": 0.7, "seed": 5, "top_k": 5, "top_p": 0.8, "min_p": 0.01, "logprobs": 2},
    "with penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    "sampled with penalties": SAMPLED | {"frequency_penalty": 0.9},
    "with a bias": {"logit_bias": {5: 4.0, 9: -100.0}},
    "without bad words": {"bad_words_ids": ((7, 9), (11,))},
    "of a few tokens": SAMPLED | {"allowed_token_ids": tuple(range(20, 30))},
    "at least so many": SAMPLED | {"min_new_tokens": 30, "stop_token_ids": tuple(range(100, 200))},
    "to a stop token": SAMPLED | {"ignore_eos": False, "stop_token_ids": tuple(range(100, 110))},
    "of several outputs": SAMPLED,
}


@pytest.mark.parametrize("choice", CHOICES)
def test_outputs_are_the_same_with_guesses_and_without(runner: GetRunner, choice: str) -> None:
    together = [asked(f"r{i}", about=i, **CHOICES[choice]) for i in range(3)]
    if choice == "of several outputs":
        together = [replace(each, n=3) for each in together]
    plain = outputs(core_of(runner("llama")), together)
    first, drafted = plain["r0"][0].token_ids, 0
    for lookup, predicted in ((LOOKUP, None), (None, first), (LOOKUP, first[:9] + prompt(9) + first[7:])):
        core = core_of(runner("llama"), prompt_lookup=lookup)
        assert outputs(core, [replace(each, prediction_ids=predicted) for each in together]) == plain
        drafted += core.stats().spec_draft_tokens
    assert drafted > 0


@pytest.mark.demo
def test_a_trained_model_says_the_same_with_guesses_and_without(demo_model: Path) -> None:
    """In the dtype that it is served in on this machine."""
    model = ModelRunner(PtConfig(model=str(demo_model), threads=1, max_model_len=512))
    text = '{"name": "Ada", "city": "Oslo", "tags": ["a", "b"]}'
    tokenizer = load_tokenizer(str(demo_model))
    said = [{"role": "user", "content": f"Repeat this, with the city changed to Paris: {text}"}]
    ids = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=True)["input_ids"]
    greedy = request(list(ids), "greedy", max_new_tokens=32)
    together = [greedy, request(list(ids), "sampled", max_new_tokens=32, temperature=0.8, seed=1, logprobs=2)]
    plain = outputs(core_of(model), together)
    core = core_of(model, prompt_lookup=LOOKUP)
    predicted = tokenizer.encode(text, add_special_tokens=False)
    assert outputs(core, [replace(each, prediction_ids=predicted) for each in together]) == plain
    assert sum(core.stats().spec_accepted.values()) > 8


def test_an_adapters_outputs_are_the_same_with_guesses_and_without(
    runner: GetRunner, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    saved = save_adapter(folder("llama"), tmp_path)

    def adapted(lookup: PromptLookup | None) -> tuple[dict[str, Any], EngineCore]:
        core = core_of(runner("llama"), prompt_lookup=lookup)
        load(core, a=saved)
        return outputs(core, [asked("base"), asked("adapted", adapter="a")]), core

    plain, _ = adapted(None)
    guessed, core = adapted(LOOKUP)
    assert guessed == plain
    assert plain["base"] != plain["adapted"]
    assert core.stats().spec_draft_tokens > 0


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_models_with_windows_and_those_that_modules_compute_are_guessed_at_too(runner: GetRunner, name: str) -> None:
    plain = outputs(core_of(runner(name)), [asked()])
    core = core_of(runner(name), prompt_lookup=LOOKUP)
    found = outputs(core, [asked(), replace(asked("s"), prediction_ids=plain["r"][0].token_ids)])
    assert found["r"] == found["s"] == plain["r"]
    assert core.stats().spec_accepted


def test_a_constrained_output_is_guessed_at_as_any_other(runner: GetRunner, grammars: Grammars) -> None:
    structured = Structured(kind="regex", value="(ab|ba){20}c")
    one = request(repeating(), structured=structured, max_new_tokens=60)

    def answer(predicted: list[int] | None) -> tuple[Answer, EngineCore]:
        core = core_of(runner("llama"), grammars=grammars)
        core.add(replace(one, prediction_ids=predicted), grammars.compile(structured))
        whole = Answer()
        while core.busy:
            for _, output in core.step().outputs:
                whole.add(output)
        return whole, core

    plain, slow = answer(None)
    guessed, fast = answer(plain.tokens)
    assert guessed.outputs == plain.outputs
    assert grammars.decode(plain.tokens).rstrip("<eos>").endswith("c")
    assert fast.stats().steps < slow.stats().steps / 2


def test_what_preemption_takes_away_is_computed_again(runner: GetRunner) -> None:
    few = runner("llama", blocks=16)
    together = [asked(f"r{i}", about=i, max_new_tokens=50) for i in range(4)]
    plain = outputs(core_of(runner("llama")), together)
    core = core_of(few, prompt_lookup=LOOKUP)
    assert outputs(core, together) == plain
    assert core.stats().preemptions > 0


def test_blocks_of_accepted_guesses_are_found_by_a_later_prompt(runner: GetRunner) -> None:
    core = core_of(runner("llama"))
    one = replace(asked(), prediction_ids=tokens(runner, asked()))
    whole = one.prompt_ids + run(core, [one])["r"].tokens
    later = run(core, [request(whole, "later", ignore_eos=True)])["later"]
    assert later.first is not None
    # The last token of an output was never computed: nobody needed what comes after it.
    assert later.first.cached_tokens == (len(whole) - 1) // BLOCK_SIZE * BLOCK_SIZE
    assert later.tokens == tokens(runner, request(whole, ignore_eos=True))


def test_beams_are_not_guessed_at(counted: Counted) -> None:
    search = asked(num_beams=2, max_new_tokens=8)
    plain = outputs(core_of(counted), [search])
    core = core_of(counted, prompt_lookup=LOOKUP)
    assert outputs(core, [replace(search, prediction_ids=plain["r"][0].token_ids)]) == plain
    assert core.stats().spec_draft_tokens == 0


# ---- in fewer steps


def test_a_prediction_that_comes_true_takes_few_steps(runner: GetRunner, counted: Counted) -> None:
    core = core_of(counted)
    run(core, [replace(asked(), prediction_ids=tokens(runner, asked()))])
    assert len(counted.steps) < 8
    stats = core.stats()
    assert stats.spec_draft_tokens == sum(stats.spec_accepted.values())
    # Tokens come of the prompt, of accepted guesses, and one of each other step.
    assert 1 + sum(stats.spec_accepted.values()) + (len(counted.steps) - 1) == 40


def test_an_output_that_leaves_its_prediction_is_guessed_at_again_where_it_comes_back(
    runner: GetRunner, counted: Counted
) -> None:
    true = tokens(runner, asked())
    other = next(token for token in prompt(50) if token not in true)
    run(core_of(counted), [replace(asked(), prediction_ids=[*true[:15], other, *true[16:]])])
    assert len(counted.steps) < 15


def test_a_prediction_that_is_wrong_is_soon_left_alone(counted: Counted) -> None:
    core = core_of(counted)
    plain = run(core_of(counted), [asked()])["r"].tokens
    other = next(token for token in prompt(50) if token not in plain)
    unlike = [token for pair in pairwise(plain) for token in (*pair, other)]
    counted.steps.clear()
    run(core, [replace(asked(), prediction_ids=unlike)])
    assert max(length for (length,) in counted.steps[1:]) > 5
    assert counted.steps[-20:] == [[1]] * 20


def test_nothing_is_guessed_unless_asked_for(counted: Counted) -> None:
    run(core_of(counted), [asked()])
    assert counted.steps == [[30]] + [[1]] * 39


def test_no_guess_goes_beyond_the_last_token(runner: GetRunner, counted: Counted) -> None:
    predicted = tokens(runner, asked())
    found = run(core_of(counted), [replace(asked(max_new_tokens=5), prediction_ids=predicted)])["r"]
    assert (found.tokens, found.outputs[0].finish_reason) == (predicted[:5], FinishReason.LENGTH)
    assert counted.steps == [[30], [4]]


def test_guesses_take_what_a_step_has_left_over(runner: GetRunner, counted: Counted) -> None:
    predicted = tokens(runner, asked())
    core = core_of(counted, max_num_batched_tokens=6)
    run(core, [replace(asked(f"r{i}"), prediction_ids=predicted) for i in range(3)])
    assert max(sum(step) for step in counted.steps) == 6


def test_steps_of_many_rows_are_left_as_they_are(runner: GetRunner, counted: Counted) -> None:
    predicted = tokens(runner, asked())
    core = core_of(counted)
    run(core, [replace(asked(f"r{i}"), prediction_ids=predicted) for i in range(30)])
    assert core.stats().spec_draft_tokens == 0


def test_tokens_outside_the_vocabulary_are_never_computed(runner: GetRunner) -> None:
    core = core_of(runner("llama"))
    true = tokens(runner, asked())
    predicted = [*true[:6], VOCAB_SIZE, -5, *true[6:]]
    assert run(core, [replace(asked(), prediction_ids=predicted)])["r"].tokens == true
    assert core.stats().spec_accepted


# ---- what is told


def reports(core: EngineCore, one: GenerationRequest) -> list[StepReport]:
    core.add(one)
    found = []
    while core.busy:
        found.append(core.step())
    return found


def test_a_step_tells_all_its_tokens_at_once_with_what_came_of_the_prediction(runner: GetRunner) -> None:
    true = tokens(runner, asked())
    other = next(token for token in prompt(50) if token not in true)
    found = reports(core_of(runner("llama")), replace(asked(), prediction_ids=[*true[:6], other]))
    told = [output for report in found for _, output in report.outputs]
    assert all(len(report.outputs) == 1 for report in found)
    assert [token for output in told for token in output.token_ids] == true
    accepted = sum(output.accepted_prediction_tokens for output in told)
    assert accepted <= sum(len(output.token_ids) - 1 for output in told)
    (first,) = (output for output in told if output.accepted_prediction_tokens == 5)
    assert first.rejected_prediction_tokens == 1


def test_guesses_from_the_prompt_are_not_told_as_a_prediction(runner: GetRunner) -> None:
    found = reports(core_of(runner("llama"), prompt_lookup=LOOKUP), asked(allowed_token_ids=(5,)))
    told = [output for report in found for _, output in report.outputs]
    assert max(len(output.token_ids) for output in told) > 1
    assert {(output.accepted_prediction_tokens, output.rejected_prediction_tokens) for output in told} == {(0, 0)}


def test_no_token_of_a_prediction_is_counted_twice_however_often_it_was_tried(runner: GetRunner) -> None:
    true = tokens(runner, asked())
    other = next(token for token in prompt(50) if token not in true)
    predicted = [*true[:4], other, *true[2:8], other, *true[6:]]
    told = [
        o
        for each in reports(core_of(runner("llama")), replace(asked(), prediction_ids=predicted))
        for _, o in each.outputs
    ]
    accepted = sum(output.accepted_prediction_tokens for output in told)
    rejected = sum(output.rejected_prediction_tokens for output in told)
    assert accepted > 10
    assert rejected > 0
    assert accepted + rejected <= len(predicted)
