"""A GGUF file as the model: what is trained on it is served on it, by the server and to the SDK that users have."""

from pathlib import Path
from typing import Any

import openai
import torch
from peft import PeftModel

from engines.checkpoint.loading import load_config, load_model, load_tokenizer
from tests.gguf_files import write_gguf
from tests.server.process import ServerProcess
from tests.training.jobs import BRIEF, make_data, make_job, make_model
from tests.until import PATIENCE
from training.report import Report
from training.run import run as run_job

MESSAGES: Any = [{"role": "user", "content": "red 1"}]


def loaded(file: Path) -> Any:
    return load_model(str(file), config=load_config(str(file)), dtype=torch.float32, device_map="cpu")


def written(model: Any, tokenizer: Any) -> str:
    """What a model answers, eight tokens of it."""
    asked = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        made = model.generate(**asked, max_new_tokens=8, do_sample=False)
    return str(tokenizer.decode(made[0, asked["input_ids"].shape[1] :], skip_special_tokens=True))


def test_what_is_trained_on_a_file_is_served_on_it(tmp_path: Path) -> None:
    model, file = make_model(tmp_path / "model"), tmp_path / "tiny-q8_0.gguf"
    write_gguf(loaded(model), file, "Q8_0", tokenizer=load_tokenizer(str(model)))
    data = make_data(tmp_path / "rows.jsonl")
    job = make_job(tmp_path / "job", "sft", **BRIEF, model=str(file), dataset=[str(data)])
    result = run_job(job, Report(job))
    assert result is not None and result.artifact is not None, result
    adapter = job.path / result.artifact

    words = ["--model", str(file), "--adapters", f"taught={adapter}", "--torch_dtype", "float32", "--threads", "1"]
    with (
        ServerProcess.ready(*words, "--device_map", "cpu") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client,
    ):
        assert [each.id for each in client.models.list().data] == ["tiny-q8_0", "taught"]
        answers = [
            client.chat.completions.create(model=name, messages=MESSAGES, max_tokens=8, temperature=0)
            for name in ("tiny-q8_0", "taught")
        ]

    base, tokenizer = loaded(file), load_tokenizer(str(file))
    meant = [written(base, tokenizer), written(PeftModel.from_pretrained(base, adapter).eval(), tokenizer)]
    assert [answer.choices[0].message.content for answer in answers] == meant
    assert meant[0] != meant[1]
