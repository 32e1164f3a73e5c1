"""A space of two axes of two values, with a paper's numbers, as a mapping that `space_from` reads."""

from typing import Any

SMALL: dict[str, Any] = {
    "name": "small",
    "title": "A small table",
    "recipe": "ressl/digits",
    "axes": {"method.tau_student": [0.1, 0.2], "method.tau_teacher": [0.03, 0.08]},
    "seeds": [0, 1, 2],
    "objectives": {"eval/knn_top1": "max"},
    "paper": {0.1: [90.0, 89.0], 0.2: [88.0, 10.0]},
}
