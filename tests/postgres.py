"""A Postgres server of the tests' own."""

import os
import pwd
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.ports import free_port

SETTINGS = ("listen_addresses=127.0.0.1", "fsync=off", "synchronous_commit=off", "full_page_writes=off")
"""It need not outlive the machine."""
PATIENCE = 60


def find_binaries() -> Path | None:
    """The folder of the newest installed Postgres; Debian keeps it out of the PATH."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent  # where its other programs are
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(folders, key=lambda folder: int(folder.parent.name), default=None)


class Postgres:
    def __init__(self, binaries: Path, folder: Path) -> None:
        """Runs from here to `close`, in the new folder `folder`."""
        self._binaries = binaries
        self._data = folder / "data"
        self._as = _other_user(folder)
        self._log = folder / "log"
        self.port = free_port()
        self._run("initdb", "-D", str(self._data), "-A", "trust", "-U", "app", "--no-sync", "--locale=C", "-E", "UTF8")
        self.start()

    def start(self) -> None:
        options = " ".join(f"-c {setting}" for setting in (*SETTINGS, f"unix_socket_directories={self._data.parent}"))
        self._run("pg_ctl", "-D", str(self._data), "-w", "-t", str(PATIENCE), "-l", str(self._log),
                  "-o", f"-p {self.port} {options}", "start")  # fmt: skip

    def stop(self) -> None:
        """At once: clients lose their connections."""
        self._run("pg_ctl", "-D", str(self._data), "-w", "-t", str(PATIENCE), "-m", "fast", "stop")

    close = stop

    @contextmanager
    def database(self) -> Iterator[str]:
        """The address of a new, empty database."""
        name = f"test_{uuid.uuid4().hex}"
        address = ("-h", "127.0.0.1", "-p", str(self.port), "-U", "app")
        self._run("createdb", *address, "--template", "template0", name)
        try:
            yield f"postgresql://app@127.0.0.1:{self.port}/{name}"
        finally:
            self._run("dropdb", *address, "--force", name)

    def _run(self, program: str, *words: str) -> None:
        # What pg_ctl starts keeps its output open, so that must not be a pipe.
        with self._log.with_name("commands").open("ab") as output:
            done = subprocess.run(
                [*self._as, str(self._binaries / program), *words],
                cwd=self._data.parent, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False,
            )  # fmt: skip
        assert done.returncode == 0, self._log.with_name("commands").read_text()


def _other_user(folder: Path) -> list[str]:
    """What runs a command as somebody else, who owns `folder` from here on: Postgres refuses to be run by root."""
    if os.getuid() != 0:
        return []
    name = next(name for name in ("postgres", "nobody") if _exists(name))
    shutil.chown(folder, name)
    return ["runuser", "-u", name, "--"]


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True
