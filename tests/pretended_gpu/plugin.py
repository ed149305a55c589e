"""`pytest -p tests.pretended_gpu.plugin`: tests with a torch that finds a GPU (`device.py`), in a process of their own:
what torch is told is not taken back."""

from tests.pretended_gpu.hooks import load

load()

from tests.pretended_gpu.device import pretend

pretend()
