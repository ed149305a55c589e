"""`tuneserve COMMAND [FILE] [--PARAMETER VALUE ...]`. Light until a command runs: help and refusals import no torch."""

import difflib
import sys
from collections.abc import Sequence

from engines.params.deploy import DeployParams
from server import __version__
from server.commands import supported as supported_of_deploy
from server.commands import supported_of_pages
from server.commands.argv import parse, refuse
from server.commands.params import COMMANDS, PAGES
from training.params.app import AppParams
from training.params.task import TASK, TASKS, InferTask
from training.refusals import supported


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` names; return the exit status: 2 where the words are wrong."""
    name, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        sys.stdout.write(overview())
        return 0
    if name in ("-V", "--version"):
        sys.stdout.write(f"tuneserve {__version__}\n")
        return 0
    if name not in COMMANDS:
        refuse("tuneserve", [f"{name!r} is not a command{_nearest(name)}"])
    if name == "deploy":
        return _deploy(words)
    return _run(name, words) if name in TASKS else _page(PAGES[name], name, words)


def _deploy(words: Sequence[str]) -> int:
    params = parse(DeployParams, words, prog="tuneserve deploy", unsupported=supported_of_deploy.unsupported())
    if problems := supported_of_deploy.refusals(params):
        refuse("tuneserve deploy", problems)
    from server.commands.deploy import run

    return run(params)


def _run(name: str, words: Sequence[str]) -> int:
    prog = f"tuneserve {name}"
    params = parse(COMMANDS[name], words, prog=prog, unsupported=supported.unsupported(COMMANDS[name]))
    task = TASK.validate_python({"task": name, "params": params})
    if problems := supported.refusals(task):
        refuse(prog, [f"--{param}: {reason}" for param, reason in problems])
    if isinstance(task, InferTask):
        from server.commands import infer

        return infer.run(task)
    from server.commands.train import run

    return run(task)


def _page(model: type[AppParams], name: str, words: Sequence[str]) -> int:
    params = parse(model, words, prog=f"tuneserve {name}", unsupported=supported_of_deploy.unsupported())
    if problems := supported_of_pages.refusals(params):
        refuse(f"tuneserve {name}", problems)
    from server.commands.pages import run

    return run(params)


def overview() -> str:
    """What `tuneserve --help` says."""
    lines = [f"  {name:<8}{model.__doc__}" for name, model in COMMANDS.items()]
    return (
        "usage: tuneserve COMMAND [FILE.yaml|FILE.json] [--PARAMETER VALUE ...]\n\n"
        "Serve, train and hot-load language models behind one OpenAI-compatible API.\n\n"
        "commands:\n" + "\n".join(lines) + "\n\n"
        "`tuneserve COMMAND --help` describes the parameters of a command. A file of parameters may come first; flags\n"
        "win over it. `tuneserve --version` tells the version.\n"
    )


def _nearest(name: str) -> str:
    nearest = difflib.get_close_matches(name.replace("_", "-"), COMMANDS, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else f"; choose from {', '.join(COMMANDS)}"
