"""Install what was tested, file by file: `python -m engines.setup.locked server dev`.

Each list of `locks/` has the version of every package that an environment needs, and the hashes of its files: pip takes
no other file, whichever index offers one. `.ci/lock.py` makes the lists. This needs Python and pip alone: it makes the
environments that all else runs in.
"""

import argparse
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

LOCKS = Path(__file__).with_name("locks")
COMPILE = """
import compileall, sys, sysconfig
compileall.compile_dir(sys.argv[1] or sysconfig.get_path("purelib"), quiet=2, workers=0)
"""


class InstallationFailed(Exception):
    """pip, or what runs it, ended with an error; it has said why."""


def install_torch(torch_index: str | None) -> None:
    """Install PyTorch: its build for CPUs where `torch_index`, or one that pip is configured with, has it; else PyPI's,
    with CUDA where there is such a build. Nothing else is taken from `torch_index`. Raises InstallationFailed."""
    try:
        install_lists(sys.executable, "torch-cpu", index=torch_index, quiet=True)
    except InstallationFailed:
        install_lists(sys.executable, "torch", index=torch_index)
    if torch_cuda():
        install_lists(sys.executable, "torch-cuda")


def install_lists(
    python: str, *names: str, index: str | None = None, target: str | None = None, quiet: bool = False
) -> None:
    """Install all packages of the lists, and no others, into the environment of `python`, or into the folder `target`;
    from PyPI, or from `index`.

    Raises InstallationFailed; `quiet`: without pip's words.
    """
    files = [option for name in names for option in ("--requirement", str(LOCKS / f"{name}.txt"))]
    options = [*(["--index-url", index] if index else []), *(["--target", target, "--upgrade"] if target else [])]
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-compile"]
    run([*command, "--require-hashes", "--no-deps", *options, *files], quiet=quiet)
    compile_files(python, target)


def compile_files(python: str, folder: str | None = None) -> None:
    """Compile what lies in the environment of `python`, or in `folder`, on all cores: pip does so on one, and takes
    longer for it than for the rest. What is no Python of this version stays as it is, as with pip."""
    subprocess.run([python, "-c", COMPILE, folder or ""], check=False)


def pinned(name: str) -> dict[str, str]:
    """The packages of a list, each with its version."""
    return dict(re.findall(r"(?m)^([a-z0-9.-]+)==([^ ;]+)", (LOCKS / f"{name}.txt").read_text()))


def run(command: list[str], *, quiet: bool = False) -> None:
    """Raises InstallationFailed."""
    done = subprocess.run(command, capture_output=quiet, check=False)
    if done.returncode:
        raise InstallationFailed(f"the installation failed: `{' '.join(command[1:4])}` ended with {done.returncode}")


def torch_cuda() -> str | None:
    """The version of CUDA that torch here was built for; None: a build for CPUs, or no torch. Does not import it."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    cuda: str | None = runpy.run_path(str(Path(spec.origin).with_name("version.py")))["cuda"]
    return cuda


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m engines.setup.locked", description="Install what was tested.")
    parser.add_argument("lists", nargs="+", metavar="LIST", help=f"one of {LOCKS}, without its ending")
    parser.add_argument("--torch-index", metavar="URL", help="index that PyTorch comes from: PyTorch's for CPUs, say")
    parser.add_argument("--target", metavar="FOLDER", help="install there, beside an environment that has PyTorch")
    arguments = parser.parse_args()
    try:
        if arguments.target is None:
            install_torch(arguments.torch_index)
        install_lists(sys.executable, *arguments.lists, target=arguments.target)
    except InstallationFailed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
