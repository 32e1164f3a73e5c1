"""Frozen teachers that a student learns from: networks, embeddings computed before, labels."""

from raysurl.recipe.sections import LABELS
from raysurl.teachers.kinds import (
    CentredTeacher,
    LabelTeacher,
    NetworkTeacher,
    check_input,
    open_teacher,
    width,
)
from raysurl.teachers.table import TableTeacher, check_names

__all__ = [
    "LABELS",
    "CentredTeacher",
    "LabelTeacher",
    "NetworkTeacher",
    "TableTeacher",
    "check_input",
    "check_names",
    "open_teacher",
    "width",
]
