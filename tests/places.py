"""The checkout, the folder of golden values and small real data sets where it is at hand, and folders to work in."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("RAYSURL_SHARED", ROOT.parent / "shared"))


def made_once(kind: str) -> Path:
    """A new folder, which goes with this process."""
    folder = Path(tempfile.mkdtemp(prefix=f"{kind}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
