"""Where the golden values and the small real data sets are, if they are at hand."""

from pathlib import Path

import numpy as np
import pytest
from places import SHARED


def load(name: str) -> dict[str, np.ndarray]:
    path = SHARED / "golden" / f"{name}.npz"
    if not path.exists():
        path = Path(__file__).parent / "golden_values" / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"golden file {name}.npz is not at hand (set RAYSURL_SHARED)")
    with np.load(path) as values:
        return dict(values)
