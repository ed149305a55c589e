"""A worker in place of `training.run` and `training.validate`: `python worker.py PLAN PROGRAM FOLDER`, in milliseconds.

PLAN is a file that says what it does: `rows` and `error` of the validation; `steps`, `seconds` of each, `save_every`;
the `metrics` that each reports beside the loss, and what is `evaluated` beside it;
`adapter`, the folder of which all checkpoints and the result are copies; `kind` of the result.
"""

import json
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any


def main(plan: dict[str, Any], program: str, folder: Path) -> int:
    if program == "validate":
        found = {"rows": plan["rows"], "model_parameters": 135_000_000, "error": plan["error"]}
        write(folder / "validation.json", found)
        return 0
    return run(folder, plan, json.loads((folder / "task.json").read_text()))


def run(folder: Path, plan: dict[str, Any], task: dict[str, Any]) -> int:
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(True))
    resumed = task["params"].get("resume_from_checkpoint")
    step = int(resumed.rpartition("-")[2]) if resumed else 0
    tell(folder, type="started", total_steps=plan["steps"], rows=plan["rows"])
    while step < plan["steps"]:
        time.sleep(plan["seconds"])
        step += 1
        metrics = {"loss": 1 / step, **plan["metrics"]}
        tell(folder, type="step", step=step, total_steps=plan["steps"], epoch=step / plan["steps"], metrics=metrics)
        if told or step % plan["save_every"] == 0:
            tell(folder, type="evaluation", step=step, metrics={"loss": 2 / step, **plan["evaluated"]})
            shutil.copytree(plan["adapter"], folder / f"checkpoint-{step}")
            tell(folder, type="checkpoint", step=step, path=f"checkpoint-{step}")
        if told:
            write(folder / "result.json", {"status": "stopped", "final_step": step})
            return 0
    shutil.copytree(plan["adapter"], folder / "result")
    made = {"artifact": "result", "kind": plan["kind"], "final_step": step, "trained_tokens": 80}
    write(folder / "result.json", {"status": "succeeded", **made})
    return 0


def tell(folder: Path, **event: Any) -> None:
    with (folder / "events.jsonl").open("a") as file:
        file.write(json.dumps({"time": time.time(), **event}) + "\n")


def write(path: Path, value: dict[str, Any]) -> None:
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(value))
    partial.rename(path)


if __name__ == "__main__":
    sys.exit(main(json.loads(Path(sys.argv[1]).read_text()), sys.argv[2], Path(sys.argv[3])))
