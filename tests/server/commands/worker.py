"""A worker in place of `training.run`: `python worker.py DEED WORDS FOLDER` does one of DEEDS in the folder of a job.

WORDS are its arguments, as JSON.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Worker:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def result(self, **fields: Any) -> None:
        (self.folder / "result.json").write_text(json.dumps(fields))

    def event(self, **fields: Any) -> None:
        with (self.folder / "events.jsonl").open("a") as file:
            file.write(json.dumps({"time": time.time(), **fields}) + "\n")

    def trains_an_adapter(self, config: dict[str, Any]) -> None:
        checkpoint = self.folder / "checkpoint-2"
        checkpoint.mkdir()
        (checkpoint / "adapter_config.json").write_text(json.dumps(config))
        self.event(type="checkpoint", step=2, path="checkpoint-2")
        self.result(status="succeeded", artifact="checkpoint-2", kind="adapter", final_step=2)

    def trains_a_model(self, artifact: str) -> None:
        self.result(status="succeeded", artifact=artifact, kind="model")

    def merges(self) -> None:
        (self.folder / "merged").mkdir()
        (self.folder / "merged" / "config.json").write_text("{}")
        self.trains_a_model("merged")

    def exports(self, name: str) -> None:
        (self.folder / "exported").mkdir()
        (self.folder / "exported" / name).touch()
        self.result(status="succeeded", artifact="exported", kind="gguf")

    def fails(self, message: str, param: str | None) -> None:
        sys.stdout.write("Traceback ...\n")
        self.result(status="failed", error={"code": "c", "message": message, "param": param})
        sys.exit(1)

    def dies(self) -> None:
        sys.stdout.writelines(f"line {i}\n" for i in range(50))
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    def stops_when_told(self) -> None:
        def stop(*_: object) -> None:
            (self.folder / "checkpoint-5").mkdir()
            self.result(status="stopped", final_step=5)
            sys.exit(0)

        signal.signal(signal.SIGTERM, stop)
        self._waits()

    def does_not_stop(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (self.folder / "pid").write_text(str(os.getpid()))
        self._waits()

    def _waits(self) -> None:
        self.event(type="message", message="ready")
        time.sleep(60)


DEEDS: dict[str, Callable[..., None]] = {
    deed.__name__: deed
    for deed in (
        Worker.trains_an_adapter, Worker.trains_a_model, Worker.merges, Worker.exports, Worker.fails, Worker.dies,
        Worker.stops_when_told, Worker.does_not_stop,
    )
}  # fmt: skip


def command(deed: str, *words: Any) -> Callable[..., list[str]]:
    """What stands in for `worker_command`."""
    assert deed in DEEDS
    return lambda folder, processes=1, machines=None: [sys.executable, __file__, deed, json.dumps(words), str(folder)]


if __name__ == "__main__":
    DEEDS[sys.argv[1]](Worker(Path(sys.argv[3])), *json.loads(sys.argv[2]))
