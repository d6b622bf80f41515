"""MSA over the ranks of a process group of torch.distributed: decode with heads, index keys or all keys divided among the
ranks, whole prompts in pieces, and chunks behind a prefix in shards. The group is the caller's; nothing is created beside it.

`TensorParallelAttention`   heads, K and V on their ranks, index keys in shards: each rank scores its share of the kv_blocks
                            for the heads of all ranks
`ContextParallelAttention`  K, V and index keys in shards: each rank attends to its share of the kv_blocks
`ChunkAttention`            the same, and the chunk's tokens on their ranks too: queries go to where the keys are
`PromptAttention`           a whole prompt: each rank has the queries of two pieces, keys are gathered; with gradients

Selections are those of one process, bit by bit. All but prompts have no backward pass. docs/several-gpus.md explains the layouts.
"""

from ._chunk import ChunkAttention
from ._decode import ContextParallelAttention, TensorParallelAttention
from ._prompt import PromptAttention

__all__ = ["ChunkAttention", "ContextParallelAttention", "PromptAttention", "TensorParallelAttention"]
