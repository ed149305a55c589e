"""swanlab and trackio, which lie in a folder of their own: they want an older protobuf, and an older Pillow, than the
environment has."""

import sys
from pathlib import Path

FOLDER = Path(sys.prefix) / "opt" / "reporters"
