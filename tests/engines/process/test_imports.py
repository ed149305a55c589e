"""How a process that begins imports what it needs."""

import subprocess
import sys

IMPORTS = """
import gc
from engines.process.imports import uncollected
with uncollected():
    import decimal
    print(gc.isenabled())
print(gc.isenabled(), gc.get_freeze_count() > 0)
gc.disable()
with uncollected():
    pass
print(gc.isenabled())
"""


def test_what_is_imported_is_looked_through_neither_meanwhile_nor_later() -> None:
    told = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False", "True", "True", "False"]
