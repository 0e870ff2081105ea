"""The fuzzers of the relocation port use the two nodes of the move's own tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "migrate"))
