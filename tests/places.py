"""The checkout, and the folder of golden values and small real data sets, where it is at hand."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("RAYSURL_SHARED", ROOT.parent / "shared"))
