"""Look up known vulnerabilities of what the lists of engines/setup/locks install: `make audit`.

Exits with 1 where there are any, and with 0 and the reason where nothing could be looked up: without a network, say.
"""

import json
import subprocess
import sys
from pathlib import Path

LOCKS = Path(__file__).parents[1] / "engines" / "setup" / "locks"
AUDITED = (
    "server",
    "torch",
    "torch-cuda",
    "vllm-cpu",
    "vllm-cuda",
    "lmdeploy-cpu",
    "lmdeploy-cuda",
    "pages",
    "build",
    "dev",
)


def main() -> int:
    found: set[tuple[str, str, str]] = set()
    looked_up = 0
    for name in AUDITED:
        report, reason = audit(LOCKS / f"{name}.txt")
        if report is None:
            say(f"skipped: {name}.txt could not be audited: {reason}")
            continue
        looked_up += sum("vulns" in each for each in report)
        found |= {(each["name"], each["version"], vuln["id"]) for each in report for vuln in each.get("vulns", [])}
    if not looked_up:
        say("skipped: no data about vulnerabilities can be reached from here")
    for package, version, id in sorted(found):
        say(f"{package} {version}: {id}")
    return 1 if found else 0


def audit(path: Path) -> "tuple[list[dict[str, object]], None] | tuple[None, str]":
    options = ("--disable-pip", "--no-deps", "--progress-spinner", "off", "--format", "json")
    command = [sys.executable, "-m", "pip_audit", *options, "--requirement", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout)["dependencies"], None
    except (ValueError, KeyError):
        return None, (done.stderr.strip().splitlines() or ["no output"])[-1]


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
