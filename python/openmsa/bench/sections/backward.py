"""The gradient of attention alone, over selections of several kinds."""

from __future__ import annotations

from .._section import Section
from ..contenders import nsa, ours_training
from .attend import cases

SECTION = Section(
    "backward",
    "gradients over selections made for it",
    cases,
    (ours_training.BACKWARD, ours_training.KL, ours_training.FUSED_BACKWARD, nsa.BACKWARD),
)
