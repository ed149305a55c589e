"""A worker in place of `training.run` and `training.validate`: `python worker.py PROGRAM FOLDER`, in milliseconds.

What it does is said by `plan.json` in the folder above the attempts' folders: `steps`, `seconds` of each, `save_every`,
`appends_to` a file at each, `die_at` a step in the first `deaths` attempts or `take_all` the memory at it, `fail_at` a
step, `children`, `no_stop`, `invalid`, `fetched`, `validation_dies`, `validation_seconds`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def write(path: Path, value: dict[str, Any]) -> None:
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(value))
    partial.rename(path)


def main(program: str, folder: Path) -> int:
    plan = folder.parent / "plan.json"
    plan = json.loads(plan.read_text()) if plan.exists() else {}
    if program == "validate":
        return validate(folder, plan)
    return run(folder, plan, json.loads((folder / "task.json").read_text()))


def validate(folder: Path, plan: dict[str, Any]) -> int:
    time.sleep(plan.get("validation_seconds", 0))
    if plan.get("validation_dies"):
        os.kill(os.getpid(), signal.SIGKILL)
    write(folder / "validation.json", {"rows": 8, "error": plan.get("invalid"), "fetched": plan.get("fetched", {})})
    return 0


def run(folder: Path, plan: dict[str, Any], task: dict[str, Any]) -> int:
    told: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: told.extend([] if plan.get("no_stop") else [True]))
    sys.stdout.write("It begins.\n")
    sys.stdout.flush()
    steps, pause = plan.get("steps", 10), plan.get("seconds", 0.01)
    if plan.get("children"):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    resumed = task["params"].get("resume_from_checkpoint")
    step = json.loads((Path(resumed) / "state.json").read_text())["step"] if resumed else 0
    tell(folder, type="started", total_steps=steps, rows=8)
    while step < steps:
        time.sleep(pause)
        step += 1
        if name := plan.get("appends_to"):
            with (folder / name).open("a") as file:
                file.write(f"{folder.name}:{step}\n")
        if step == plan.get("die_at") and int(folder.name) <= plan["deaths"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == plan.get("take_all") and int(folder.name) <= plan["deaths"]:
            taken = []
            while True:
                taken.append(b"x" * (1 << 24))
        if step == plan.get("fail_at"):
            error = {"code": "bad_data", "message": "Row 3 is empty.", "param": "dataset"}
            write(folder / "result.json", {"status": "failed", "error": error})
            return 1
        tell(folder, type="step", step=step, total_steps=steps, epoch=step / steps, metrics={"loss": 1 / step})
        if told or step % plan.get("save_every", 2) == 0:
            save(folder, step)
        if told:
            write(folder / "result.json", {"status": "stopped", "final_step": step})
            return 0
    sys.stdout.write("It ends.\n")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    write(
        folder / "result.json",
        {
            "status": "succeeded",
            "artifact": "adapter",
            "kind": "adapter",
            "task_type": "causal_lm",
            "final_step": step,
            "trained_tokens": 80,
        },
    )
    return 0


def save(folder: Path, step: int) -> None:
    partial = folder / f".checkpoint-{step}"
    partial.mkdir()
    (partial / "optimizer.pt").write_text("state")
    (partial / "state.json").write_text(json.dumps({"step": step}))
    partial.rename(folder / f"checkpoint-{step}")
    tell(folder, type="checkpoint", step=step, path=f"checkpoint-{step}")


def tell(folder: Path, **event: Any) -> None:
    with (folder / "events.jsonl").open("a") as file:
        file.write(json.dumps({"time": time.time(), **event}) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
