"""Steps as a serving engine makes them: paged caches, one plan for the largest step that may come, a CUDA graph. Chunks of a
prompt behind a cached prefix, one or several new tokens per sequence, whole prompts, and mixtures of decodes, chunks and
empty rows."""

from __future__ import annotations

import dataclasses
import functools

from .._errors import Refused
from .._judge import judge_layer, judge_selection
from .._problem import Problem
from .._section import Case, Contender, K, Options, Prepared, Result, Section, tokens
from ..contenders import flash_attn, flashinfer_msa, ours, sglang, vllm

#: Capacities of an engine's plan.
MOST_QUERIES, LONGEST, MOST_SEQUENCES = 8 * K, 1024 * K, 512
#: Query tokens up to which a sequence decodes: some of them speculated.
DECODED = 16
#: Dense attention of longer prompts takes minutes.
LONGEST_DENSE = 128 * K


def cases(options: Options) -> list[Case]:
    k32, k128, all_keys = (options.size(size * K) for size in (32, 128, 1024))
    result = []
    for before in sorted({options.size(8 * K), k128, all_keys}):
        for queries in (1, 16, 17, 64, 256, 1024):
            if queries <= before:
                result.append(_case(options, f"{queries} behind {tokens(before)}", [(queries, before + queries)]))
    steps = ((k32, 1), (k32, 8), (k32, 32), (k128, 1), (k128, 8), (k128, 32), (all_keys, 1), (all_keys, 8))
    for keys, batch in dict.fromkeys(steps):
        result.append(_case(options, f"{tokens(keys)} x {batch}", [(1, keys)] * batch))
    for queries, keys, batch in ((8, k128, 8), (4, k32, 32)):
        result.append(_case(options, f"{tokens(keys)} x {batch}, {queries} tokens each", [(queries, keys)] * batch))
    for keys in dict.fromkeys((options.size(8 * K), k32, k128, all_keys)):
        result.append(_case(options, f"a prompt of {tokens(keys)}", [(keys, keys)]))
    short = options.size(K)
    mixtures = {
        f"255 decodes of {tokens(k32)}, a chunk of 2K": [(1, k32)] * 255 + [_chunk(2 * K, k32)],
        f"31 decodes of {tokens(k32)}, a chunk of 8K": [(1, k32)] * 31 + [_chunk(8 * K, k32)],
        f"64 x 4 tokens of {tokens(k32)}, a chunk of 512": [(4, k32)] * 64 + [_chunk(512, k32)],
        f"12 decodes of {tokens(k128)} among 500 empty": [(1, k128)] * 12 + [(0, 0)] * 500,
        f"a prompt of {tokens(min(8 * K, k32))} among 511 empty": [_chunk(8 * K, min(8 * K, k32))] + [(0, 0)] * 511,
        f"a decode of {tokens(all_keys)} among 63 of {tokens(short)}": [(1, short)] * 63 + [(1, all_keys)],
    }
    return result + [_case(options, label, sequences) for label, sequences in mixtures.items()]


def _chunk(queries: int, keys: int) -> tuple[int, int]:
    """The next chunk of a prompt that then has so many keys."""
    return min(queries, keys), keys


def _case(options: Options, label: str, sequences: list[tuple[int, int]]) -> Case:
    make = functools.partial(Problem, options.layer, sequences, is_paged=True, **options.problem_options())
    return Case(label, max(keys for _, keys in sequences), len(sequences), make)


def capacity(problem: Problem) -> dict[str, int]:
    most = {"max_total_q": MOST_QUERIES, "max_seqlen_k": LONGEST, "max_batch": MOST_SEQUENCES}
    needed = {"max_total_q": problem.total_q, "max_seqlen_k": problem.max_seqlen_k, "max_batch": problem.batch}
    return {name: max(number, needed[name]) for name, number in most.items()}


def one_plan(inputs: ours.Inputs, operation=ours.Calls.layer):
    def prepare(problem: Problem) -> Prepared:
        problem = inputs(problem)
        return Prepared(operation.__get__(ours.Calls(problem, **capacity(problem))), problem)

    return prepare


def two_calls(problem: Problem) -> Prepared:
    """Decodes in one call and longer chunks, which come after them, in another."""
    decodes = sum(queries <= DECODED for queries in problem.queries)
    parts = [part for part in (slice(0, decodes), slice(decodes, problem.batch)) if part.start < part.stop]
    if any(queries > DECODED for queries in problem.queries[:decodes]):
        parts = [slice(0, problem.batch)]
    calls = ours.Calls(problem, **capacity(problem))

    def run(call: int) -> Result:
        return [calls.layer(call, part) for part in parts][-1]

    return Prepared(run)


def of_prompts(contender: Contender) -> Contender:
    """Dense attention, of whole prompts alone."""

    def prepare(problem: Problem) -> Prepared:
        if problem.sequences != [(problem.max_seqlen_k, problem.max_seqlen_k)]:
            raise Refused("measured for whole prompts only")
        if problem.total_q > LONGEST_DENSE:
            raise Refused(f"measured for prompts up to {tokens(LONGEST_DENSE)}")
        return contender.prepare(problem)

    return dataclasses.replace(contender, prepare=prepare)


SECTION = Section(
    "serving",
    "steps of a serving engine, with one plan for all of them",
    cases,
    (
        Contender("openmsa", "layer", one_plan(ours.as_it_is), judge_layer),
        Contender("openmsa tight plan", "layer", ours.layer(ours.as_it_is), judge_layer),
        Contender("openmsa two calls", "layer", two_calls, judge_layer),
        Contender("openmsa fp8 caches", "layer", one_plan(Problem.with_fp8_caches), judge_layer),
        Contender("openmsa select", "select", one_plan(ours.as_it_is, ours.Calls.select), judge_selection),
        Contender("openmsa fp8 select", "select", one_plan(Problem.with_fp8_index, ours.Calls.select), judge_selection),
        *flashinfer_msa.ALL,
        vllm.VLLM,
        sglang.SGLANG,
        of_prompts(flash_attn.OF_VLLM),
    ),
    in_graph=True,
)
