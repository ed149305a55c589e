"""Answers of a model in training, drawn by our engine: they are what the model itself says, at every step."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, VeraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from engines.checkpoint.loading import load_config, load_model
from engines.checkpoint.quantization import Quantization
from engines.errors import ContextLengthExceeded, InvalidRequest, UnsupportedModel
from tests.engines.pt.tiny import CONFIGS, EOS, save
from training.losses.log_probs import token_log_probs
from training.report import Stopped
from training.rollouts.engine import EngineRollouts
from training.rollouts.types import Asked, Drawing, Rollout

PROMPTS = [[5, 17, 200, 31, 8], [90, 14], [33, 34, 35, 36, 37, 38, 39]]
GREEDY = Drawing(max_new_tokens=12, temperature=0.0)
SAMPLED = Drawing(max_new_tokens=12, temperature=0.7)

Make = Callable[..., EngineRollouts]


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = CONFIGS["llama"]()
    config.tie_word_embeddings = True
    return save(config, tmp_path_factory.mktemp("tied"))


@pytest.fixture
def rollouts(tied: Path) -> Iterator[Make]:
    made: list[EngineRollouts] = []

    def make(model: nn.Module, source: Path = tied, **settings: Any) -> EngineRollouts:
        stops = {"dtype": torch.float32, "stop_token_ids": [EOS], "max_model_len": 64}
        made.append(EngineRollouts(model, source=str(source), **stops | settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


def plain(source: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)


def with_lora(source: Path, **settings: Any) -> PeftModel:
    return get_peft_model(plain(source), LoraConfig(r=4, task_type="CAUSAL_LM", **settings))


TRAINED: dict[str, Callable[[Path], nn.Module]] = {
    "full": plain,
    "lora": lambda source: with_lora(source, target_modules="all-linear"),
    "lora with a head of its own": lambda source: with_lora(
        source, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"]
    ),
    "lora on embeddings": lambda source: with_lora(source, target_modules=["embed_tokens", "up_proj"]),
    "dora": lambda source: with_lora(source, target_modules=["q_proj", "down_proj"], use_dora=True),
    "vera": lambda source: get_peft_model(
        plain(source), VeraConfig(r=8, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM")
    ),
}


def step(model: nn.Module, seed: int) -> None:
    """Change what is trained, as an optimizer does: in place."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.15 * torch.randn_like(weight)


def said(model: Any, prompt: list[int], count: int = 12) -> list[int]:
    """What transformers' own generate says, the likeliest tokens."""
    ids = torch.tensor([prompt])
    given = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0, "eos_token_id": EOS}
    out = model.eval().generate(input_ids=ids, max_new_tokens=count, do_sample=False, **given)
    return out[0, len(prompt) :].tolist()


def answers(drawn: list[list[Rollout]]) -> list[list[int]]:
    return [list(one.token_ids) for group in drawn for one in group]


@pytest.mark.parametrize("way", TRAINED)
def test_answers_are_the_models_own_before_a_step_and_after_it_is_taken_over(
    way: str, tied: Path, rollouts: Make
) -> None:
    model = TRAINED[way](tied)
    engine = rollouts(model)
    before = [said(model, prompt) for prompt in PROMPTS]
    assert answers(engine.draw(PROMPTS, 1, GREEDY, seed=0)) == before

    for number in (1, 2):
        step(model, number)
        after = [said(model, prompt) for prompt in PROMPTS]
        assert after != before
        assert answers(engine.draw(PROMPTS, 1, GREEDY, seed=0)) == before
        engine.take_over()
        drawn = engine.draw(PROMPTS, 1, GREEDY, seed=0)
        assert answers(drawn) == after
        assert {one.version for group in drawn for one in group} == {engine.version} == {number}
        before = after


NF4 = Quantization(method="bnb", bits=4)


def on_nf4(source: Path, **settings: Any) -> PeftModel:
    config = load_config(str(source))
    base = load_model(str(source), config=config, dtype=torch.float32, device_map="cpu", quantization=NF4)
    return get_peft_model(base, LoraConfig(r=4, task_type="CAUSAL_LM", target_modules="all-linear", **settings))


def test_answers_of_an_adapter_on_a_quantised_base_are_the_models_own(tied: Path, rollouts: Make) -> None:
    model = on_nf4(tied)
    engine = rollouts(model, quantization=NF4)
    for number in (0, 1):
        assert answers(engine.draw(PROMPTS, 1, GREEDY, seed=0)) == [said(model, prompt) for prompt in PROMPTS]
        step(model, number)
        engine.take_over()


def test_what_would_be_written_over_quantised_weights_draws_no_answers(tied: Path, rollouts: Make) -> None:
    with pytest.raises(UnsupportedModel, match="written over weights that are quantised"):
        rollouts(on_nf4(tied, use_dora=True), quantization=NF4)


@pytest.mark.parametrize("way", ["full", "lora"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_that_the_trainer_computes(
    way: str, temperature: float, tied: Path, rollouts: Make
) -> None:
    model = TRAINED[way](tied).eval()
    step(model, 3)
    drawing = Drawing(max_new_tokens=12, temperature=temperature, top_p=0.9, top_k=40)
    drawn = rollouts(model).draw(PROMPTS, 3, drawing, seed=1)
    for one in (one for group in drawn for one in group):
        torch.testing.assert_close(torch.tensor(one.log_probs), computed(model, one, temperature), atol=1e-4, rtol=1e-4)


def computed(model: nn.Module, one: Rollout, temperature: float) -> Tensor:
    ids = torch.tensor([[*one.prompt_ids, *one.token_ids]])
    positions = torch.zeros_like(ids, dtype=torch.bool)
    positions[0, len(one.prompt_ids) - 1 : -1] = True
    wanted = torch.tensor(one.token_ids)
    with torch.no_grad():
        return token_log_probs(model, {"input_ids": ids}, positions, wanted, temperature=temperature).log_probs


def test_a_seed_gives_the_same_answers_and_another_seed_others(tied: Path, rollouts: Make) -> None:
    model = TRAINED["lora"](tied)
    engine = rollouts(model)
    first = engine.draw(PROMPTS, 4, SAMPLED, seed=7)
    assert engine.draw(PROMPTS, 4, SAMPLED, seed=7) == first
    assert rollouts(model).draw(PROMPTS, 4, SAMPLED, seed=7) == first
    assert answers(engine.draw(PROMPTS, 4, SAMPLED, seed=8)) != answers(first)
    assert len({tuple(one) for one in answers(first)}) > len(PROMPTS)


def test_answers_of_one_prompt_compute_it_once(tied: Path, rollouts: Make) -> None:
    engine = rollouts(plain(tied))
    engine.draw([[7] * 40], 5, Drawing(max_new_tokens=1), seed=0)
    assert engine._core.stats().step_tokens == 40


def test_an_answer_ends_with_its_stop_token_or_is_cut(tied: Path, rollouts: Make) -> None:
    model = plain(tied)
    cut = said(model, PROMPTS[0])
    stop = next(token for at, token in enumerate(cut) if at and token not in cut[:at])
    [[ended]] = rollouts(model, stop_token_ids=[stop]).draw(PROMPTS[:1], 1, GREEDY, seed=0)
    assert ended.ended
    assert list(ended.token_ids) == cut[: cut.index(stop) + 1]
    assert len(ended.log_probs) == len(ended.token_ids)
    [[whole]] = rollouts(model, stop_token_ids=[]).draw(PROMPTS[:1], 1, GREEDY, seed=0)
    assert not whole.ended
    assert len(whole.token_ids) == 12


def test_more_answers_than_run_at_a_time_are_all_drawn(tied: Path, rollouts: Make) -> None:
    model = plain(tied)
    few, many = rollouts(model, max_num_seqs=3), rollouts(model)
    assert answers(few.draw(PROMPTS * 3, 2, SAMPLED, seed=2)) == answers(many.draw(PROMPTS * 3, 2, SAMPLED, seed=2))


def test_memory_for_keys_and_values_is_held_only_while_answers_are_drawn(tied: Path, rollouts: Make) -> None:
    held: list[bool] = []
    model = plain(tied)
    engine: EngineRollouts = rollouts(model, checkpoint=lambda: held.append(bool(engine._core.runner.cache.keys)))
    engine.draw(PROMPTS, 1, GREEDY, seed=0)
    assert all(held) and held
    assert not engine._core.runner.cache.keys


def test_a_draw_that_is_told_to_stop_leaves_nothing_behind(tied: Path, rollouts: Make) -> None:
    stops = iter([False, False, True])

    def checkpoint() -> None:
        if next(stops, False):
            raise Stopped

    model = plain(tied)
    engine = rollouts(model, checkpoint=checkpoint)
    with pytest.raises(Stopped):
        engine.draw(PROMPTS, 2, GREEDY, seed=0)
    assert answers(engine.draw(PROMPTS, 1, GREEDY, seed=0)) == [said(model, prompt) for prompt in PROMPTS]


def test_a_prompt_that_leaves_no_room_is_refused_and_the_next_draw_is_whole(tied: Path, rollouts: Make) -> None:
    model = plain(tied)
    engine = rollouts(model)
    with pytest.raises(ContextLengthExceeded):
        engine.draw([PROMPTS[0], [7] * 64], 1, GREEDY, seed=0)
    with pytest.raises(InvalidRequest):
        engine.draw([[]], 1, GREEDY, seed=0)
    assert answers(engine.draw(PROMPTS, 1, GREEDY, seed=0)) == [said(model, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "mixtral"])
def test_trained_weights_of_other_architectures_are_taken_over(name: str, tmp_path: Path, rollouts: Make) -> None:
    source = save(CONFIGS[name](), tmp_path)
    model = plain(source)
    engine = rollouts(model, source)
    step(model, 5)
    engine.take_over()
    assert answers(engine.draw(PROMPTS, 1, GREEDY, seed=0)) == [said(model, prompt) for prompt in PROMPTS]


def test_a_bfloat16_policy_follows_its_float32_weights(tied: Path, rollouts: Make) -> None:
    """The trainer holds float32, the engine computes in bfloat16: what it says stays near."""
    model = TRAINED["lora"](tied).eval()
    engine = rollouts(model, dtype=torch.bfloat16)
    step(model, 4)
    engine.take_over()
    [[one]] = engine.draw(PROMPTS[:1], 1, GREEDY, seed=0)
    near = computed(model, one, 1.0)
    assert (torch.tensor(one.log_probs) - near).abs().mean() < 0.2


COLOURS = '{"enum": ["red", "blue", "green"]}'


def asked(*lengths: int) -> list[Asked]:
    drawing = Drawing(max_new_tokens=12)
    return [Asked(prompt_ids=[5] * length, schema=COLOURS, drawing=drawing, seed=3) for length in lengths]


@pytest.mark.parametrize("trained", ["full", "lora", "dora", "vera"])
def test_the_base_model_answers_in_a_schema_whatever_was_learned_of_it(
    tied: Path, tiny: Path, rollouts: Make, trained: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model = TRAINED[trained](tied)
    engine = rollouts(model, tokenizer=tokenizer, judges=True, stop_token_ids=[tokenizer.eos_token_id])
    before = engine.ask_base(asked(4, 9))
    assert all(tokenizer.decode(ids, skip_special_tokens=True) in ('"red"', '"blue"', '"green"') for ids in before)
    step(model, seed=1)
    engine.take_over()
    drawn = engine.draw(PROMPTS, 1, GREEDY, seed=1)
    assert engine.ask_base(asked(4, 9)) == before
    short, long = engine.ask_base(asked(4, 90))
    assert short == before[0]
    assert isinstance(long, ContextLengthExceeded)
    assert engine.ask_base([]) == []
    assert engine.draw(PROMPTS, 1, GREEDY, seed=1) == drawn
