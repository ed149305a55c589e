"""A thread of each process computes while Python ends: it is refused the interpreter's lock within C++, as a thread of
gloo may be."""

import os
import threading


def _compute() -> None:
    threading.main_thread().join()
    import torch

    while True:
        torch.ones(1000).sum()


if "RANK" in os.environ:
    threading.Thread(target=_compute, daemon=True).start()
