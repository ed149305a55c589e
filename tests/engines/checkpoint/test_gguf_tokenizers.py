"""Tokenizers of GGUF files: texts are encoded, and tokens decoded, as by the tokenizer that the file was made of."""

import logging
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from tokenizers.decoders import ByteLevel
from tokenizers.pre_tokenizers import ByteLevel as ByteLevelSplit
from transformers import PreTrainedTokenizerFast

from engines.checkpoint.loading import load_generation_config, load_tokenizer
from engines.errors import UnsupportedModel
from tests.engines.tokenizers import byte_level
from tests.gguf_tokenizers import AWKWARD, RUNS, trained, write_merges, write_pieces

KINDS: dict[str, dict[str, Any]] = {
    "with a space before texts": {"prefix": True},
    "without": {"prefix": False},
    "with tokens of white space and tags": {"prefix": False, "user_defined": RUNS},
}


@pytest.fixture(scope="module", params=sorted(KINDS))
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """SentencePiece's own tokenizer, and ours of the same in a GGUF file."""
    kind = KINDS[request.param]
    pieces = trained(**kind)
    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    write_pieces(pieces, path, tokenizer__ggml__add_space_prefix=kind["prefix"])
    return pieces, load_tokenizer(str(path))


# ---- SentencePiece


def written(text: str, tokenizer: Any) -> str:
    """As SentencePiece takes it: its sign for a space stands for one, but in runs that are tokens here."""
    return text.replace("\u2581", " ") if "  " in tokenizer.get_added_vocab() else text


@pytest.mark.parametrize("text", AWKWARD)
def test_texts_are_encoded_and_decoded_as_by_sentencepiece(text: str, both: tuple[Any, Any]) -> None:
    pieces, tokenizer = both
    text = written(text, tokenizer)
    meant = pieces.encode(text, add_bos=True)
    assert tokenizer(text).input_ids == meant
    assert tokenizer.decode(meant, skip_special_tokens=True) == pieces.decode(meant)


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from(" thefoxdg.1\n\té日🙂<>/abl\u2581"), max_size=24))
def test_so_is_every_other_text(text: str, both: tuple[Any, Any]) -> None:
    pieces, tokenizer = both
    text = written(text, tokenizer)
    meant = pieces.encode(text)
    assert tokenizer(text, add_special_tokens=False).input_ids == meant
    assert tokenizer.decode(meant) == pieces.decode(meant)


# ---- what a file says besides


def test_what_follows_a_token_of_its_own_begins_with_a_space_too(tmp_path: Path) -> None:
    pieces = trained()
    tokenizer = load_tokenizer(str(write_pieces(pieces, tmp_path / "a.gguf")))
    rows = [pieces.bos_id(), *pieces.encode("the fox"), pieces.piece_to_id("<|x|>"), *pieces.encode("jumps")]
    assert tokenizer("<s>the fox<|x|>jumps", add_special_tokens=False).input_ids == rows


def test_phi_3_has_no_white_space_after_its_tokens(tmp_path: Path) -> None:
    pieces = trained()
    tokenizer = load_tokenizer(str(write_pieces(pieces, tmp_path / "a.gguf", "phi3")))
    x = pieces.piece_to_id("<|x|>")
    found = tokenizer("<|x|>\nfox<|x|>\n<|x|>\n", add_special_tokens=False).input_ids
    assert found == [x, *pieces.encode("fox"), x, x]


def test_bytes_are_not_written_by_their_names(tmp_path: Path) -> None:
    pieces = trained()
    tokenizer = load_tokenizer(str(write_pieces(pieces, tmp_path / "a.gguf")))
    assert tokenizer.decode(tokenizer("<0x41>").input_ids, skip_special_tokens=True) == "<0x41>"


@pytest.mark.parametrize(("begins", "ends"), [(None, None), (True, True), (False, True), (False, False)])
@pytest.mark.parametrize("split", ["llama-bpe", "tekken", "gpt-2", "pieces"])
def test_texts_begin_and_end_as_the_file_says(split: str, begins: Any, ends: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    said: dict[str, Any] = {"tokenizer__ggml__add_bos_token": begins, "tokenizer__ggml__add_eos_token": ends}
    if split == "pieces":
        write_pieces(trained(), path, **said)
    else:
        said |= {"tokenizer__ggml__bos_token_id": 5, "tokenizer__ggml__eos_token_id": 6}
        write_merges(byte_level(), path, split, **said)
    tokenizer = load_tokenizer(str(path))
    before = split != "gpt-2" if begins is None else begins
    plain = tokenizer("the fox", add_special_tokens=False).input_ids
    bos, eos = ([id] for id in (tokenizer.bos_token_id, tokenizer.eos_token_id))
    assert tokenizer("the fox").input_ids == bos * before + plain + eos * bool(ends)


def of_bytes(*more: str, special: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 256 bytes, of two spaces, which are merged, and of more tokens."""
    tokens = [*sorted(ByteLevelSplit.alphabet()), "ĠĠ", *more]
    tokenizer = Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, [("Ġ", "Ġ")]))
    if special:
        tokenizer.add_special_tokens(list(more))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TEXT = "I'LL take 1234 naïve\n\n  foxes, HTMLParser's"
LLAMA3 = ["I", "'LL", " take", " ", "123", "4", " naïve", "\n\n", " ", " foxes", ",", " HTMLParser", "'s"]
SPLITS = {
    "gpt-2": ["I", "'", "LL", " take", " 1234", " naïve", "\n\n ", " foxes", ",", " HTMLParser", "'s"],
    "smollm": ["I", "'", "LL", " take", " ", *"1234", " naïve", "\n\n ", " foxes", ",", " HTMLParser", "'s"],
    "llama-bpe": LLAMA3,
    "qwen2": [*LLAMA3[:4], *"1234", *LLAMA3[6:]],
    "tekken": [*LLAMA3[:4], *"1234", *LLAMA3[6:]],
    "gpt-4o": ["I'LL", *LLAMA3[2:-2], " HTMLParser's"],
}
SAME = {"refact": "smollm", "glm4": "llama-bpe", "stablelm2": "qwen2", "deepseek-r1-qwen": "qwen2", "phi-2": "gpt-2"}


@pytest.mark.parametrize("split", sorted(SPLITS | SAME))
def test_texts_are_split_as_the_file_says(split: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(write_merges(byte_level(), tmp_path / "a.gguf", split)))
    words = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(TEXT)
    assert [ByteLevel().decode([word]) for word, _ in words] == SPLITS[SAME.get(split, split)]
    for text in AWKWARD:
        meant = unicodedata.normalize("NFC", text) if split == "qwen2" else text
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == meant


def test_a_file_that_does_not_say_how_is_split_as_gpt_2_and_warned_of(tmp_path: Path, caplog: Any) -> None:
    path = tmp_path / "a.gguf"
    with caplog.at_level(logging.WARNING):
        tokenizer = load_tokenizer(str(write_merges(byte_level(), path, None)))
    assert tokenizer.convert_ids_to_tokens(tokenizer("12").input_ids) == ["1", "2"]
    assert f"{path} does not say how its tokenizer splits texts" in caplog.text


def test_what_is_no_way_to_split_that_is_known_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="splits texts as spiral; known are") as error:
        load_tokenizer(str(write_merges(byte_level(), tmp_path / "a.gguf", "spiral")))
    assert error.value.param == "model"


def test_merges_of_other_tokens_are_refused(tmp_path: Path) -> None:
    own = of_bytes()
    for merges in (["a b"], ["a"]):
        path = write_merges(own, tmp_path / "a.gguf", "gpt-2", tokenizer__ggml__merges=merges)
        with pytest.raises(UnsupportedModel, match="merges are not of its tokens"):
            load_tokenizer(str(path))


def test_words_that_are_tokens_are_taken_whole_where_llama_3_takes_them(tmp_path: Path) -> None:
    """Though no merges come to them."""
    found = {}
    for split in ("llama-bpe", "qwen2"):
        tokenizer = load_tokenizer(str(write_merges(of_bytes("fox"), tmp_path / f"{split}.gguf", split)))
        found[split] = tokenizer.convert_ids_to_tokens(tokenizer("fox", add_special_tokens=False).input_ids)
    assert found == {"llama-bpe": ["fox"], "qwen2": ["f", "o", "x"]}


def test_accents_are_put_together_for_qwen(tmp_path: Path) -> None:
    paths = [write_merges(byte_level(), tmp_path / f"{name}.gguf", name) for name in ("qwen2", "gpt-2")]
    both = [load_tokenizer(str(path)) for path in paths]
    assert [each.decode(each("e\u0301").input_ids) for each in both] == ["\u00e9", "e\u0301"]


def test_tokens_whose_names_are_of_other_scripts_are_whole(tmp_path: Path) -> None:
    """DeepSeek's."""
    names = ("<｜begin▁of▁sentence｜>", "<｜User｜>")
    path = write_merges(of_bytes(*names, special=True), tmp_path / "a.gguf", "qwen2", tokenizer__ggml__bos_token_id=257)
    tokenizer = load_tokenizer(str(path))
    assert tokenizer("".join(names) + "a").input_ids == [257, 258, *tokenizer("a").input_ids]
    assert tokenizer.bos_token_id == 257 and len(tokenizer) == 259
    assert tokenizer.decode([257, 258]) == "".join(names)


@pytest.mark.parametrize("end", ["<|end|>", "<end_of_turn>", "<|eot_id|>"])
def test_an_answer_ends_where_its_family_ends_one_though_the_file_does_not_say_so(end: str, tmp_path: Path) -> None:
    pieces = trained(user_defined=[end])
    path = str(write_pieces(pieces, tmp_path / "a.gguf"))
    assert load_generation_config(path).eos_token_id == [pieces.eos_id(), pieces.piece_to_id(end)]
    assert load_tokenizer(path).decode(pieces.encode(f"fox{end}"), skip_special_tokens=True) == "fox"
