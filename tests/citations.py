"""Small citation graphs in the raw files of Planetoid."""

import pickle

import numpy as np
import scipy.sparse

PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")


def citation_files(folder, name="Cora", *, known=6, test=(9, 6, 7), graph=None, classes=2):
    """A graph in Planetoid's raw form: `known` nodes, then test nodes; 8 is missing, as in CiteSeer."""
    raw = folder / name / "raw"
    raw.mkdir(parents=True)
    count, order = max(test) + 1, list(test)
    features = scipy.sparse.csr_matrix(np.arange(3 * count, dtype=np.float32).reshape(count, 3))
    onehot = np.eye(classes)[np.arange(count) % classes]
    parts = {
        "x": features[:2],
        "tx": features[order],
        "allx": features[:known],
        "y": onehot[:2],
        "ty": onehot[order],
        "ally": onehot[:known],
        "graph": graph or {0: [1, 1], 1: [0], 2: [], 9: [6, 9]},
    }
    for part, value in parts.items():
        (raw / f"ind.{name.lower()}.{part}").write_bytes(pickle.dumps(value, protocol=3))
    (raw / f"ind.{name.lower()}.test.index").write_text("".join(f"{node}\n" for node in test))
    return {"name": f"planetoid:{name}", "path": str(folder)}
