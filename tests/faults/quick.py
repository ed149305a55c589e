"""A server that starts its engine again after short pauses, and waits as shortly for its store, as the program of a
process: its words are `HANG deploy WORD...`, or `HANG hosted SETTINGS` for what `echo_server.py` runs.

As long as there is the file HANG, no process of an engine gets so far as to load anything, and each has little time.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from engines.process import backoff, client
from engines.process.config import Patience
from engines.process.life import Life, Program
from server import backlog
from server.commands import cli
from server.store import database
from tests.server import echo_server

SLEEPS = "import time; time.sleep(1000)"


class HangingLife(Life):
    hang: Path

    def __init__(self, program: Program, patience: Patience) -> None:
        if self.hang.exists():
            program = replace(program, command=(sys.executable, "-c", SLEEPS))
            patience = replace(patience, start_seconds=3.0)
        super().__init__(program, patience)


def main(words: list[str]) -> int:
    hang, *command = words
    HangingLife.hang = Path(hang)
    backoff.LONGEST_PAUSE = backoff.FIRST_PAUSE
    backlog.RETRY_SECONDS = 1.0
    database.BUSY_SECONDS = 3
    client.Life = HangingLife  # type: ignore[attr-defined]  # a name that it imports
    return echo_server.main(json.loads(command[1])) if command[0] == "hosted" else cli.main(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
