"""What an engine is given to do, and the figures of what it answered."""

from __future__ import annotations

import dataclasses
import functools
import math
import random
import statistics

from .._section import tokens
from ._checkpoint import VOCABULARY

#: Decode steps that are timed, and those at first that are not.
STEPS, WARM_STEPS = 48, 4


@dataclasses.dataclass(frozen=True)
class Request:
    """context      tokens of the prompt, which `seed` draws
    num_new      tokens to make, whatever they are
    is_late      sent when every earlier request has WARM_STEPS tokens
    """

    context: int
    num_new: int
    seed: int
    is_late: bool = False

    def prompt(self) -> list[int]:
        return _prompt(self.context, self.seed)


@functools.lru_cache(maxsize=64)  # a load has its prompts more than once
def _prompt(num_tokens: int, seed: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(3, VOCABULARY) for _ in range(num_tokens)]


@dataclasses.dataclass(frozen=True)
class Load:
    """`batch` prompts of `context` tokens at once, which are then decoded together; or, is_mixed, such decodes while
    one more prompt is read. chunk: tokens that a step takes, at most."""

    context: int
    batch: int
    chunk: int
    is_mixed: bool = False

    @property
    def label(self) -> str:
        size = f"{tokens(self.context)} x {self.batch}"
        return f"{size}, and a prompt of {tokens(self.context)}" if self.is_mixed else size

    def requests(self, seed: int, late_seed: int | None = None) -> list[Request]:
        """Other prompts for every seed, so that no cache of prefixes has them; late_seed: of the prompt that is late."""
        # While the last prompts are read the first requests decode already.
        num_chunks = math.ceil(self.context / self.chunk) * (2 if self.is_mixed else self.batch)
        num_new = num_chunks + WARM_STEPS + STEPS
        requests = [Request(self.context, num_new, seed * 1000 + number) for number in range(self.batch)]
        if self.is_mixed:
            late_seed = seed if late_seed is None else late_seed
            requests.append(Request(self.context, 2, late_seed * 1000 + self.batch, is_late=True))
        return requests

    def num_tokens(self) -> int:
        """Most that are in the caches at once."""
        return sum(request.context + request.num_new for request in self.requests(0))

    def figures(self, sent: list[float], arrivals: list[list[float]]) -> dict[str, float]:
        """sent     seconds at which each request was sent
        arrivals    of each request, seconds at which its tokens came, from first to last

        first_token_ms    from the first request to the first token of the last
        step_ms           median time between tokens of a request while all of them decode
        tokens_per_s      of a mixed load: those of the prompt and those that the decodes made while it was read
        """
        if self.is_mixed:
            begin, end = sent[-1], arrivals[-1][0]
            made = sum(begin < time <= end for times in arrivals[:-1] for time in times)
            return {"tokens_per_s": (self.context + made) / (end - begin), "first_token_ms": (end - begin) * 1e3}
        all_decode = max(times[0] for times in arrivals)
        steps = []
        for times in arrivals:
            decoded = [time for time in times if time >= all_decode][WARM_STEPS : WARM_STEPS + STEPS]
            steps += [after - before for before, after in zip(decoded, decoded[1:])]
        return {"first_token_ms": (all_decode - sent[0]) * 1e3, "step_ms": statistics.median(steps) * 1e3}


def loads_of(contexts: list[int], batches: list[int], chunk: int, most_tokens: int) -> list[Load]:
    """Every context with every batch that has at most so many tokens."""
    loads = [Load(context, batch, chunk) for context in contexts for batch in batches]
    return [load for load in loads if load.context * load.batch <= most_tokens]
