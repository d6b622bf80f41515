"""A process that has one engine: python -m openmsa.bench.engines._worker ENGINE SETTINGS, the settings as JSON.

Its first line of input says that the engine may be made, its first line of output that the engine is there. Then it reads a
line for each load, a list of requests, and answers with a line, when each was sent and when its tokens came. What the engine
prints goes to stderr."""

from __future__ import annotations

import json
import os
import sys

from ._engines import ENGINES, Settings
from ._loads import Request


def main(arguments: list[str]) -> None:
    name, settings = arguments
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(value) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    ENGINES[name].import_modules()
    sys.stdin.readline()
    engine = ENGINES[name](Settings(**json.loads(settings)))
    answer("ready")
    for line in sys.stdin:
        answer(engine.serve([Request(**fields) for fields in json.loads(line)]))


if __name__ == "__main__":
    main(sys.argv[1:])
