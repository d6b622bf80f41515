"""The two arms of a comparison: processes that have the engine as it is, and with openmsa in it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from ._engines import Settings, Times
from ._loads import Request

#: What a plug-in says in its log of the layers that it serves, and of those that it does not.
_SERVES, _LEAVES = re.compile(r"openmsa \S+ serves .*"), re.compile(r"openmsa leaves .*")


def words_in(log: str) -> tuple[list[str], list[str]]:
    """What openmsa says in a log of layers that it serves, and of those that it leaves to the engine."""
    return _SERVES.findall(log), _LEAVES.findall(log)


class Failed(RuntimeError):
    """A process ended or did not answer; the message has the end of its log."""


class Arm:
    """A process that imports the engine and waits for `start`.

    name        "stock" or "openmsa"
    log         file of what the process prints
    time_limit  seconds for the engine to start, and for a load
    """

    def __init__(self, engine: str, settings: Settings, log: Path, time_limit: float):
        self.name = "openmsa" if settings.with_openmsa else "stock"
        self.log, self._time_limit = log, time_limit
        command = [sys.executable, "-m", f"{__package__}._worker", engine, json.dumps(dataclasses.asdict(settings))]
        with log.open("w") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                start_new_session=True,  # the engine's own processes go with it
            )

    def start(self) -> None:
        """Has the engine made. Raises Failed too where the layers are not served as the name says."""
        self._send("make the engine")
        self._answer()
        serves, leaves = words_in(self.log.read_text(errors="replace"))
        if self.name == "stock":
            expected, got = "the engine's own kernels", serves
        else:
            expected, got = "openmsa in all sparse layers", leaves
        if got or (self.name == "openmsa" and not serves):
            said = got[0] if got else "no word of it"
            raise Failed(f"{self.name}: expected {expected}, got {said}; see {self.log}")

    def serve(self, requests: list[Request]) -> Times:
        self._send([dataclasses.asdict(request) for request in requests])
        sent, arrivals = self._answer()
        return sent, arrivals

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _send(self, value) -> None:
        assert self._process.stdin is not None  # it is a pipe
        with contextlib.suppress(BrokenPipeError):  # _answer says what became of the process
            self._process.stdin.write(json.dumps(value) + "\n")
            self._process.stdin.flush()

    def _answer(self):
        assert self._process.stdout is not None
        end = time.monotonic() + self._time_limit
        while self._process.poll() is None and time.monotonic() < end:
            if select.select([self._process.stdout], [], [], 1.0)[0]:
                line = self._process.stdout.readline()
                if line:
                    return json.loads(line)
        status = self._process.poll()
        state = f"no answer in {self._time_limit:g} s" if status is None else f"it ended with status {status}"
        lines = self.log.read_text(errors="replace").splitlines()
        raise Failed("\n".join([f"{self.name}: {state}; the end of {self.log}:", *lines[-15:]]))
