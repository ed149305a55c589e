"""How a process that begins imports what it needs: that is most of what its start takes."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Within, no garbage is collected, and later collections do not look through what there is at its end: all that is
    imported stays. The first of them would take a quarter of a second for what an engine imports, and each that is
    full again."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
