"""An engine beside itself with openmsa in it: time to the first token, time per token, and decodes beside the chunks of
a prompt.

The model is a small MiniMax-M3 of random weights: M3's attention in --layers layers, the first of which is dense, thin
MLPs, no experts, bf16. Nearly all of a prompt's time is attention, so that gains are upper bounds of what M3 gains. Two
processes, one with openmsa, have their engines side by side and take turns: stock, openmsa, openmsa, stock, and so on,
for each load. Both must fit on the GPU with their caches. Figures are the best of a load's runs, after one that is not
counted, which compiles kernels. With --decodes a load goes on with runs of the same prompts, which the engine's cache of
prefixes has, for the figures of decode steps alone. A JSON file has every run, the machine, versions and settings; beside
it is what the engines printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import itertools
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .._machine import machine_facts
from ._arms import Arm, Failed
from ._checkpoint import Model, write_checkpoint
from ._engines import ENGINES, PAGE, Settings
from ._loads import STEPS, WARM_STEPS, Load, Request, loads_of
from ._report import rows_of, table

CONTEXTS, BATCHES = [32768, 131072], [1, 8, 32]


def parse(arguments) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m openmsa.bench.engines", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("--output", type=Path, default=Path("bench-out"), help="folder (default: bench-out)")
    parser.add_argument("--contexts", type=_numbers, default=CONTEXTS, help="tokens of a prompt (32768,131072)")
    parser.add_argument("--batches", type=_numbers, default=BATCHES, help="prompts at once (1,8,32)")
    parser.add_argument(
        "--most-tokens", type=int, default=1 << 20, help="loads of more tokens, context x batch, are left out (2^20)"
    )
    parser.add_argument("--chunk", type=int, default=8192, help="tokens of a step, at most (8192)")
    parser.add_argument(
        "--mixed-batch", type=int, default=8, help="decodes beside the chunks of a prompt; 0: no such load (8)"
    )
    parser.add_argument("--mixed-chunk", type=int, default=2048, help="tokens of a step with both (2048)")
    parser.add_argument("--rounds", type=int, default=2, help="runs of a load for each arm (2)")
    parser.add_argument(
        "--decodes", type=int, default=0, help="further runs of a load for each arm over prompts in the cache (0)"
    )
    parser.add_argument(
        "--read-once", type=int, help="with --decodes: loads of more tokens have their prompts read once (none has)"
    )
    parser.add_argument("--heads-q", type=int, default=64)
    parser.add_argument("--heads-kv", type=int, default=4)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--attention-backend", default="", help="of the dense layer, as the engine names it (its own)")
    parser.add_argument("--time-limit", type=float, default=600.0, help="seconds for a start and for a load (600)")
    parser.add_argument("--commit", help="recorded in the JSON (git's)")
    options = parser.parse_args(arguments)
    for name in ("chunk", "mixed_chunk"):
        if getattr(options, name) < PAGE:
            parser.error(f"--{name.replace('_', '-')}: expected at least {PAGE}, got {getattr(options, name)}")
    if options.rounds < 1:
        parser.error(f"--rounds: expected at least 1, got {options.rounds}")
    return options


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def loads(options: argparse.Namespace) -> dict[int, list[Load]]:
    """By the size of a step, with which an engine is started."""
    plain = loads_of(options.contexts, options.batches, options.chunk, options.most_tokens)
    result = {options.chunk: plain} if plain else {}
    if options.mixed_batch:
        mixed = Load(min(options.contexts), options.mixed_batch, options.mixed_chunk, is_mixed=True)
        result.setdefault(options.mixed_chunk, []).append(mixed)
    return result


def settings_of(model: Model, checkpoint: Path, members: list[Load], options: argparse.Namespace) -> Settings:
    """Caches for the largest of the loads, which is all that an engine has room for."""
    requests = [load.requests(0) for load in members]
    pages = max(sum(-(-(one.context + one.num_new) // PAGE) + 1 for one in load) for load in requests) + 16
    longest = max(one.context + one.num_new for load in requests for one in load)
    return Settings(
        model=str(checkpoint),
        with_openmsa=False,
        chunk=members[0].chunk,
        max_batch=max(len(load) for load in requests),
        max_tokens=pages * PAGE,
        max_context=-(-longest // PAGE) * PAGE + PAGE,
        cache_bytes=pages * PAGE * model.bytes_per_token(),
        is_mixed=any(load.is_mixed for load in members),
        attention_backend=options.attention_backend,
        keeps_prompts=options.decodes > 0,
    )


def rounds_of(load: Load, options: argparse.Namespace, fresh: Iterator[int]) -> Iterator[tuple[list[Request], bool]]:
    """Of every round the requests and whether their prompts are new. The first round does not count.

    fresh   seeds that no load has had. Rounds that need no new prompts share those of seed 0, of which a longer prompt
            begins with a shorter one: the cache of prefixes has a part of the next load's then
    """
    if load.is_mixed:
        for _ in range(1 + options.rounds):
            yield load.requests(0, next(fresh)), True
        return
    requests = load.requests(0)
    yield requests, True
    is_read_once = options.decodes and options.read_once is not None and load.context * load.batch > options.read_once
    for _ in range(0 if is_read_once else options.rounds):
        requests = load.requests(next(fresh))
        yield requests, True
    # The chunks of prompts that are still read have a page or more each.
    decodes = [dataclasses.replace(request, num_new=load.batch + WARM_STEPS + STEPS) for request in requests]
    for _ in range(options.decodes):
        yield decodes, False


def run_load(load: Load, arms: dict[str, Arm], options: argparse.Namespace, fresh: Iterator[int]) -> list[dict]:
    """A run of each arm that does not count, then the rounds, each in the opposite order of the one before."""
    order = list(arms)
    runs = []
    for number, (requests, has_new_prompts) in enumerate(rounds_of(load, options, fresh)):
        for name in order:
            figures = load.figures(*arms[name].serve(requests))
            if not has_new_prompts:
                del figures["first_token_ms"]
            runs.append({"load": load.label, "arm": name, "round": number} | figures)
            words = ", ".join(f"{figure} {value:.5g}" for figure, value in figures.items())
            print(f"{load.label}, {name}: {words}" + ("" if number else " (not counted)"), file=sys.stderr, flush=True)
        if number:
            order.reverse()
    return runs


def measure(settings: Settings, members: list[Load], options: argparse.Namespace, on_runs) -> None:
    """Starts both arms and runs the loads; on_runs gets the runs of each."""
    arms: dict[str, Arm] = {}
    try:
        for with_openmsa in (False, True):
            arm_settings = dataclasses.replace(settings, with_openmsa=with_openmsa)
            name = "openmsa" if with_openmsa else "stock"
            log = options.output / f"{options.engine}-{name}-{settings.chunk}.log"
            arms[name] = Arm(options.engine, arm_settings, log, options.time_limit)
        for arm in arms.values():  # one after the other: an engine measures memory, and kernels of some sizes
            arm.start()
        fresh = itertools.count(1)
        for load in members:
            on_runs(run_load(load, arms, options, fresh))
    finally:
        for arm in arms.values():
            arm.close()


def main(arguments=None) -> int:
    options = parse(arguments)
    if importlib.util.find_spec(options.engine) is None:
        print(f"openmsa.bench.engines: expected {options.engine} to be installed", file=sys.stderr)
        return 1
    model = Model(num_heads_q=options.heads_q, num_heads_kv=options.heads_kv, num_layers=options.layers)
    groups = loads(options)
    if not groups:
        print("openmsa.bench.engines: expected loads of at most --most-tokens, got none", file=sys.stderr)
        return 1
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"engines-{options.engine}.json"
    runs: list[dict] = []
    all_settings: list[dict] = []
    results: dict = {"machine": machine_facts("cuda", options.commit), "model": dataclasses.asdict(model)}
    results |= {"settings": all_settings, "runs": runs}
    failures: list[str] = []
    folder = Path(tempfile.mkdtemp(prefix="openmsa-bench-"))
    try:
        checkpoint = write_checkpoint(model, folder / "model")
        for members in groups.values():
            settings = settings_of(model, checkpoint, members, options)
            all_settings.append(dataclasses.asdict(settings))

            def keep(new: list[dict]) -> None:
                runs.extend(new)
                path.write_text(json.dumps(results, indent=1) + "\n")

            try:
                measure(settings, members, options, keep)
            except Failed as error:
                failures.append(str(error))
    except KeyboardInterrupt:
        print("\ninterrupted; what was measured so far:", file=sys.stderr)
    finally:
        shutil.rmtree(folder)
    return report(options.engine, runs, failures, path)


def report(engine: str, runs: list[dict], failures: list[str], path: Path) -> int:
    """Prints everything; returns 1 where an arm failed or nothing was measured."""
    by_load: dict[str, list[dict]] = {}
    for run in runs:
        if run["round"]:
            by_load.setdefault(run["load"], []).append(run)
    rows = [row for label, members in by_load.items() for row in rows_of(label, members)]
    if rows:
        print(table(engine, rows))
        print("written:", path)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
