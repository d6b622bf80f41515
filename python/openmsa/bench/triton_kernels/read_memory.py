"""A kernel that reads memory and nothing else: the rate that bounds decode."""

import triton
import triton.language as tl

TILE = 8192
CTAS_PER_SM = 8


@triton.jit(do_not_specialize=["steps"])
def _read_kernel(data, out, steps, TILE: tl.constexpr):
    """Program p reads tiles p, p + programs, ... and leaves something that depends on them all."""
    acc = tl.zeros([TILE], tl.int32)
    place = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    for _ in range(steps):
        acc ^= tl.load(data + place)
        place += tl.num_programs(0) * TILE
    tl.store(out + tl.program_id(0), tl.max(acc, 0))


def read(data, out):
    """data: int32, of a multiple of len(out) * TILE numbers; out: int32, one per CTA, the largest of its TILE xors."""
    programs = len(out)
    _read_kernel[(programs,)](data, out, len(data) // TILE // programs, TILE=TILE, num_warps=8, num_stages=4)
