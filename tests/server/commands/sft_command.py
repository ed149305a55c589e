"""`tuneserve sft --model m` with a worker that does one of `worker.py`'s deeds: `python -m ...sft_command DEED`."""

import sys
from unittest.mock import patch

from server.commands import cli, foreground
from tests.server.commands.worker import command

if __name__ == "__main__":
    with patch.object(foreground, "worker_command", command(sys.argv[1])):
        sys.exit(cli.main(["sft", "--model", "m"]))
