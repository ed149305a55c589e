"""The conversion of the demo model, killed at every one of its steps: it is never taken for a whole one."""

import shutil
import sys
import tempfile
from pathlib import Path

import filelock  # noqa: F401
import platformdirs  # noqa: F401

from engines.setup import demo
from tests.killed import MOST_STEPS, Killer, was_killed

WHOLE = {
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    "model.safetensors", "manifest.json",
}  # fmt: skip
killer = Killer()


def main(cache: Path, source: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        demo.convert(source, Path(folder))  # before the fork: what is read to be imported is no step
    killer.watch_events()
    for damaged in (False, True):
        sys.stdout.write(f"{kill_at_every_step(cache, source, damaged=damaged)} steps\n")


def kill_at_every_step(cache: Path, source: Path, *, damaged: bool) -> int:
    folder = cache / "models" / demo.NAME

    def convert(steps: int) -> None:
        killer.arm(steps)
        demo.demo_model(cache, source)

    for steps in range(MOST_STEPS):
        shutil.rmtree(folder, ignore_errors=True)
        if damaged:
            folder.mkdir(parents=True)
            (folder / "config.json").touch()
        killed = was_killed(lambda steps=steps: convert(steps))  # type: ignore[misc]
        if demo.is_whole(folder):
            assert {path.name for path in folder.iterdir()} == WHOLE
        if not killed:
            break
    assert steps > 20 and demo.is_whole(folder), steps
    return steps


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
