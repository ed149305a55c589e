"""`tuneserve infer` as a user runs it: over a data set by two processes, and at the terminal."""

import json
import subprocess
import sys
from pathlib import Path

from tests.server.process import ROOT, environment
from tests.training.jobs import make_model
from tests.until import PATIENCE

PROGRAM = "import sys; from server.commands.cli import main; sys.exit(main())"


def infer(*words: str, said: str = "", **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", PROGRAM, "infer", *words, "--torch_dtype", "float32", "--temperature", "0"]
    done = subprocess.run(
        [*command, "--max_new_tokens", "8"],
        cwd=ROOT,
        env=environment() | variables,
        input=said,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_two_processes_answer_a_data_set_as_the_terminal_does(tmp_path: Path) -> None:
    model, data, answers = make_model(tmp_path / "model"), tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    rows = [{"query": f"value {n}", "response": "one two"} for n in range(6)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    over = ("--val_dataset", str(data), "--result_path", str(answers), "--metric", "accuracy", "rouge", "bleu")
    done = infer("--model", str(model), *over, "--ddp_backend", "gloo", NPROC_PER_NODE="2")
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [line["row"] for line in lines] == rows
    assert "6 rows are answered" in done.stdout
    assert all(name in done.stdout for name in ("accuracy", "rouge-1", "rouge-2", "rouge-l", "bleu-4"))
    said = infer("--model", str(model), said="".join(f"{row['query']}\n/clear\n" for row in rows[:2]))
    assert said.stdout == "".join(f"{line['response']}\n" for line in lines[:2])
