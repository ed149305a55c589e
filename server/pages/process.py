"""The process of a page, which has Gradio: beside a server that was started for it, or alone."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import NoReturn

from engines.process.children import with_parent_death_signal
from server.pages.settings import VARIABLE, Settings

PACKAGES = Path(__file__).parents[2]
"""The folder that `server`, `training` and `engines` lie in."""
HERE = ("localhost", "127.0.0.1", "::1")
"""What no proxy is asked for: the server, and the page itself, where they are on this machine."""
CLOSE_SECONDS = 10
COMMAND = (sys.executable, "-m", "server.pages.page")


def environment(settings: Settings, libraries: Path) -> dict[str, str]:
    """Gradio's packages go before ours; nothing of Gradio's own variables changes what `settings` say."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("GRADIO_", "no_proxy"))}
    return ours | {
        VARIABLE: settings.model_dump_json(),
        "PYTHONPATH": f"{libraries}{os.pathsep}{PACKAGES}",
        "PYTHONSAFEPATH": "1",
        "NO_PROXY": ",".join([*filter(None, [os.environ.get("NO_PROXY") or os.environ.get("no_proxy")]), *HERE]),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def become(settings: Settings, libraries: Path) -> NoReturn:
    """Go on as the page's process."""
    os.execve(sys.executable, COMMAND, environment(settings, libraries))


class Beside:
    """A page while the block runs. Where it ends by itself, this process is told to stop."""

    failed = False
    """Whether it has ended by itself."""

    def __init__(self, settings: Settings, libraries: Path) -> None:
        self._settings, self._libraries = settings, libraries
        self._closing = False

    def __enter__(self) -> None:
        self._process = subprocess.Popen(
            with_parent_death_signal(COMMAND),
            env=environment(self._settings, self._libraries),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # the terminal's Ctrl-C comes to us alone
        )
        threading.Thread(target=self._watch, name="page", daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._process.terminate()
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _watch(self) -> None:
        self._process.wait()
        if not self._closing:
            self.failed = True
            signal.raise_signal(signal.SIGTERM)
