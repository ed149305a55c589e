"""Constrained outputs: random walks through the masks always end in what the constraint describes."""

import json
import re
from collections.abc import Iterator

import jsonschema
import pytest
import torch
from llguidance import LLParserLimits
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from engines.errors import InvalidRequest, UnsupportedModel
from engines.sampler import grammar as grammar_module
from engines.sampler.grammar import GrammarCompiler, GrammarState, MaskWorker
from engines.sampler.row import SamplerRow
from engines.sampler.sampling import SamplingError, sample
from engines.types import Sampling, Structured, StructuredKind

EOS = 0
PADDING = 37
"""Logits are often wider than the tokenizer."""


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 290 tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(['{"name": "value", "numbers": [10, 20]} the red and the blue'] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


@pytest.fixture(scope="module")
def compiler(tokenizer: PreTrainedTokenizerFast) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, len(tokenizer) + PADDING, [EOS])


@pytest.fixture(scope="module")
def worker(compiler: GrammarCompiler) -> Iterator[MaskWorker]:
    worker = MaskWorker(compiler)
    yield worker
    worker.close()


def constraint(kind: StructuredKind, value: object = "") -> Structured:
    return Structured(kind=kind, value=value if isinstance(value, str) else json.dumps(value))


def walk(state: GrammarState, compiler: GrammarCompiler, worker: MaskWorker, seed: int) -> list[int]:
    """The tokens of a random output up to its end; the longer it gets, the more it leans towards what closes it."""
    row = SamplerRow(Sampling(max_new_tokens=1000, seed=seed), [], (EOS,), 0, compiler.vocab_size)
    output: list[int] = []
    while not state.finished:
        logits = torch.zeros(1, compiler.vocab_size)
        closing = [EOS, *(byte_token(compiler, c) for c in b'"}]')]
        logits[0, closing] += len(output) / 4
        [token_id] = sample(logits, [row], worker.start([state]).result()).token_ids
        row.accept(token_id)
        state.accept(token_id)
        if token_id == EOS:
            break
        output.append(token_id)
        assert len(output) < 1000
    return output


def byte_token(compiler: GrammarCompiler, byte: int) -> int:
    [token_id] = compiler._tokenizer.tokenize_bytes(bytes([byte]))
    return int(token_id)


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["red", "blue"]},
        "numbers": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
        "inner": {"type": "object", "properties": {"on": {"type": "boolean"}}, "additionalProperties": False},
    },
    "required": ["name", "kind", "numbers"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(12))
def test_an_output_under_a_schema_is_an_instance_of_it(
    seed: int, compiler: GrammarCompiler, worker: MaskWorker, tokenizer: PreTrainedTokenizerFast
) -> None:
    output = walk(compiler.compile(constraint("json_schema", SCHEMA)), compiler, worker, seed)
    jsonschema.validate(json.loads(tokenizer.decode(output)), SCHEMA)


@pytest.mark.parametrize("seed", range(8))
def test_a_json_object_parses(
    seed: int, compiler: GrammarCompiler, worker: MaskWorker, tokenizer: PreTrainedTokenizerFast
) -> None:
    output = walk(compiler.compile(constraint("json_object")), compiler, worker, seed)
    assert isinstance(json.loads(tokenizer.decode(output)), dict)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("pattern", [r"[a-f]{3}-\d{2}(é|ü)?", r"(red|blue)( and (red|blue)){0,3}"])
def test_a_regex_matches_the_whole_output(
    pattern: str, seed: int, compiler: GrammarCompiler, worker: MaskWorker, tokenizer: PreTrainedTokenizerFast
) -> None:
    output = walk(compiler.compile(constraint("regex", pattern)), compiler, worker, seed)
    assert re.fullmatch(pattern, tokenizer.decode(output))


def test_every_choice_comes_and_nothing_else(
    compiler: GrammarCompiler, worker: MaskWorker, tokenizer: PreTrainedTokenizerFast
) -> None:
    choices = ["red", "red and blue", 'a "quoted" one']
    state = compiler.compile(constraint("choice", choices))
    outputs = {tokenizer.decode(walk(state.fork(), compiler, worker, seed)) for seed in range(40)}
    assert outputs == set(choices)


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("json_schema", {"const": "an <eos> token"}, '"an <eos> token"'),
        ("regex", "an <eos> token", "an <eos> token"),
        ("grammar", 'start: "an <eos> token"', "an <eos> token"),
        ("grammar", 'root ::= "an <eos> token"', "an <eos> token"),
    ],
)
def test_the_text_of_a_special_token_is_spelled_out(
    kind: StructuredKind,
    value: object,
    text: str,
    compiler: GrammarCompiler,
    worker: MaskWorker,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    output = walk(compiler.compile(constraint(kind, value)), compiler, worker, 1)
    assert EOS not in output
    assert tokenizer.decode(output) == text


def test_a_grammar_in_lark_holds(
    compiler: GrammarCompiler, worker: MaskWorker, tokenizer: PreTrainedTokenizerFast
) -> None:
    state = compiler.compile(constraint("grammar", 'start: "(" start ")" | "x"'))
    output = tokenizer.decode(walk(state, compiler, worker, 1))
    depth = output.count("(")
    assert output == "(" * depth + "x" + ")" * depth


def allowed(mask: torch.Tensor) -> list[int]:
    bits = (mask[:, None] >> torch.arange(32)) & 1
    return bits.flatten().nonzero()[:, 0].tolist()


def test_a_finished_output_allows_its_end_only(
    compiler: GrammarCompiler, worker: MaskWorker, tokenizer: PreTrainedTokenizerFast
) -> None:
    state = compiler.compile(constraint("choice", ["red"]))
    for token_id in tokenizer.encode("red"):
        assert not state.finished
        assert token_id in allowed(worker.start([state]).result()[0])
        state.accept(token_id)
    assert state.finished
    assert allowed(worker.start([state]).result()[0]) == [EOS]
    state.accept(EOS)
    assert state.finished


def test_tokens_beyond_the_tokenizer_are_never_allowed(
    compiler: GrammarCompiler, worker: MaskWorker, tokenizer: PreTrainedTokenizerFast
) -> None:
    masks = worker.start([compiler.compile(constraint("regex", ".*"))]).result()
    assert masks is not None
    assert masks.shape == (1, -(-compiler.vocab_size // 32))
    assert max(allowed(masks[0])) < len(tokenizer)


def test_a_model_narrower_than_its_tokenizer_keeps_its_own_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    narrow = GrammarCompiler(tokenizer, len(tokenizer) - 50, [EOS])
    worker = MaskWorker(narrow)
    masks = worker.start([narrow.compile(constraint("regex", "[a-z]+"))]).result()
    worker.close()
    row = SamplerRow(Sampling(max_new_tokens=1), [], (EOS,), 0, narrow.vocab_size)
    [token_id] = sample(torch.zeros(1, narrow.vocab_size), [row], masks).token_ids
    assert tokenizer.decode([token_id]).isalpha()


def test_rows_without_a_constraint_have_every_bit(compiler: GrammarCompiler, worker: MaskWorker) -> None:
    state = compiler.compile(constraint("choice", ["red"]))
    masks = worker.start([None, state, None]).result()
    assert masks is not None
    assert (masks[[0, 2]] == -1).all()
    assert (masks[1] != -1).any()


def test_a_batch_without_constraints_needs_no_masks(worker: MaskWorker) -> None:
    assert worker.start([None, None]).result() is None


def test_a_fork_goes_its_own_way(compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast) -> None:
    first = compiler.compile(constraint("choice", ["ab", "ac"]))
    [a], [b], [c] = (tokenizer.encode(letter) for letter in "abc")
    first.accept(a)
    second = first.fork()
    first.accept(b)
    assert first.finished and not second.finished
    second.accept(c)
    assert second.finished


def test_a_malformed_constraint_is_the_requests_fault(compiler: GrammarCompiler) -> None:
    for structured in (constraint("regex", "("), constraint("grammar", "nonsense"), constraint("json_schema", "{")):
        with pytest.raises(InvalidRequest, match="Invalid"):
            compiler.compile(structured)


def test_a_grammar_that_becomes_too_complex_fails_its_row(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_module, "parser_limits", lambda: LLParserLimits(step_lexer_fuel=1))
    compiler = GrammarCompiler(tokenizer, len(tokenizer), [EOS])
    state = compiler.compile(constraint("regex", "(a|b)*a(a|b){14}"))
    worker = MaskWorker(compiler)
    masks = worker.start([None, state]).result()
    worker.close()
    assert state.failed and not state.finished
    rows = [SamplerRow(Sampling(max_new_tokens=1), [], (EOS,), 0, len(tokenizer)) for _ in range(2)]
    with pytest.raises(SamplingError) as caught:
        sample(torch.zeros(2, len(tokenizer)), rows, masks)
    assert isinstance(caught.value.failures[1], InvalidRequest)
    with pytest.raises(InvalidRequest, match="too complex"):
        state.accept(tokenizer.encode("a")[0])


def test_a_tokenizer_that_cannot_be_constrained_says_why(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UnsupportedModel, match="fast tokenizer"):
        GrammarCompiler(object(), 10, [EOS])
    with pytest.raises(UnsupportedModel, match="end-of-sequence"):
        GrammarCompiler(tokenizer, len(tokenizer), [])
