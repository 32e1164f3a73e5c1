"""Frozen teachers that a student learns from: networks, embeddings computed before, labels."""

from raysurl.teachers.kinds import LABELS, CentredTeacher, check_input, open_teacher, width

__all__ = ["LABELS", "CentredTeacher", "check_input", "open_teacher", "width"]
