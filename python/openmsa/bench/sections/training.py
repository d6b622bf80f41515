"""One sequence forward and backward: attention with its gradients, and the loss that trains the index branch; the whole step
and its parts, beside dense attention."""

from __future__ import annotations

from .._judge import judge_contiguous
from .._section import Contender, Section
from ..contenders import flash_attn, flash_msa, nsa, ours_training, pytorch
from .prefill import cases

SECTION = Section(
    "training",
    "one sequence, forward, loss of the index branch and backward",
    cases,
    (
        *ours_training.PARTS,
        *pytorch.TRAINING,
        *(
            Contender(name, "dense", flash_attn.training(module), judge_contiguous, ("cuda",))
            for name, module in flash_attn.MODULES.items()
        ),
        *flash_msa.TRAINING,
        *nsa.TRAINING,
    ),
    is_plotted=True,
)
