"""`tuneserve COMMAND [FILE] [--PARAMETER VALUE ...]`. Light until a command runs: help and refusals import no torch.

`deploy` imports the parameters of no other command before it begins its engine, whose start takes longest.
"""

import difflib
import sys
from collections.abc import Collection, Sequence

from engines.params.deploy import DeployParams
from server import __version__
from server.commands import supported as supported_of_deploy
from server.commands.argv import parse, refuse


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` names; return the exit status: 2 where the words are wrong."""
    name, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        sys.stdout.write(overview())
        return 0
    if name in ("-V", "--version"):
        sys.stdout.write(f"tuneserve {__version__}\n")
        return 0
    if name == "deploy":
        return _deploy(words)
    from server.commands.params import COMMANDS, PAGES

    if name not in COMMANDS:
        refuse("tuneserve", [f"{name!r} is not a command{_nearest(name, COMMANDS)}"])
    return _page(name, words) if name in PAGES else _run(name, words)


def _deploy(words: Sequence[str]) -> int:
    params = parse(DeployParams, words, prog="tuneserve deploy", unsupported=supported_of_deploy.unsupported())
    if problems := supported_of_deploy.refusals(params):
        refuse("tuneserve deploy", problems)
    from server.commands.deploy import run

    return run(params)


def _run(name: str, words: Sequence[str]) -> int:
    from server.commands.params import COMMANDS
    from training.params.task import TASK, InferTask
    from training.refusals import supported

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


def _page(name: str, words: Sequence[str]) -> int:
    from server.commands import supported_of_pages
    from server.commands.params import PAGES

    params = parse(PAGES[name], words, prog=f"tuneserve {name}", unsupported=supported_of_deploy.unsupported())
    if problems := supported_of_pages.refusals(params):
        refuse(f"tuneserve {name}", problems)
    from server.commands.pages import run

    return run(params)


def overview() -> str:
    """What `tuneserve --help` says."""
    from server.commands.params import COMMANDS

    lines = [f"  {name:<8}{model.__doc__}" for name, model in COMMANDS.items()]
    return (
        "usage: tuneserve COMMAND [FILE.yaml|FILE.json] [--PARAMETER VALUE ...]\n\n"
        "Serve, train and hot-load language models behind one OpenAI-compatible API.\n\n"
        "commands:\n" + "\n".join(lines) + "\n\n"
        "`tuneserve COMMAND --help` describes the parameters of a command. A file of parameters may come first; flags\n"
        "win over it. `tuneserve --version` tells the version.\n"
    )


def _nearest(name: str, names: Collection[str]) -> str:
    nearest = difflib.get_close_matches(name.replace("_", "-"), names, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else f"; choose from {', '.join(names)}"
