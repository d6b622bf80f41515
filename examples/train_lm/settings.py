"""Sizes of the model and of a training, and the arms that are compared."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of the model. The default has the attention of one of four tensor parallel ranks of M3, and 104 million parameters;
    the embedding is also the output projection."""

    vocab_size: int = 16384
    hidden_size: int = 1024
    mlp_size: int = 2048
    num_layers: int = 8
    num_dense_layers: int = 1  # the first ones
    num_heads_q: int = 16
    num_heads_kv: int = 1
    head_dim: int = 128
    index_dim: int = 128
    rotary_dim: int = 64
    rope_theta: float = 5e6
    block_size: int = 128
    topk: int = 16


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Of a training. All arms read the same sequences in the same order. Shares are of all tokens."""

    context: int = 32 << 10
    short_context: int = 8 << 10  # of those at first: more steps for the same tokens, until a model looks things up
    long_context: int = 128 << 10  # of the sequences at the end
    steps: int = 1500  # of `context` tokens; a sequence of another length counts as so much more or less
    short_share: float = 0.4
    long_share: float = 0.05
    index_warmup_share: float = 0.1  # dense attention while the index branch learns over the whole history
    convert_share: float = 0.6  # when msa-cpt leaves the dense twin
    learning_rate: float = 1e-3
    learning_rate_warmup: int = 100  # steps
    weight_decay: float = 0.1
    kl_weight: float = 1.0
    answer_weight: float = 10.0  # of an answer's token in the loss, beside 1 of any other
    facts: int = 128  # per `context` tokens, each asked for three times
    pages: int = 6  # per `context` tokens, in every third sequence
    page_lines: int = 64
    evaluate_every: int = 100  # times `context` tokens
    held_out_sequences: int = 4
    checkpoint_every: int = 300  # times `context` tokens
    log_every: int = 10  # steps
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Arm:
    """One training.

    is_sparse      sparse layers have an index branch
    has_warmup     they begin with dense attention
    detaches       kl_loss stays within the index branch
    is_converted   begins with the dense twin's checkpoint
    """

    is_sparse: bool = True
    has_warmup: bool = True
    detaches: bool = True
    is_converted: bool = False


ARMS = {
    "dense": Arm(is_sparse=False),
    "msa-pt": Arm(),
    "msa-cpt": Arm(is_converted=True),
    "no-detach": Arm(detaches=False),
    "no-warmup": Arm(has_warmup=False),
}

#: Seconds on a CPU: what the tests run.
SMOKE_SHAPE = Shape(
    vocab_size=512, hidden_size=64, mlp_size=96, num_layers=3, num_heads_q=16, head_dim=8, index_dim=8, rotary_dim=4,
    block_size=16, topk=4,
)  # fmt: skip
SMOKE_RECIPE = Recipe(
    context=256, short_context=128, long_context=512, steps=40, short_share=0.1, learning_rate_warmup=4, facts=2,
    pages=1, page_lines=4, evaluate_every=10, held_out_sequences=2, checkpoint_every=10, log_every=1,
)  # fmt: skip
