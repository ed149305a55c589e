"""swanlab and trackio can be imported."""

import sys

from tests.reporters import FOLDER

sys.path.append(str(FOLDER))
