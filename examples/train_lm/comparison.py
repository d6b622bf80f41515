"""The whole comparison as jobs over the GPUs of a machine: text, arms, retrieval, recordings, report. Each job is a command
of its own with a log in `logs`; one that ended is marked in `done`, so that the comparison, begun again, goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch

RECORDED = ("msa-pt", "msa-cpt")  # whose selections are written
RETRIEVED = ("dense", *RECORDED)  # who is asked for facts


@dataclasses.dataclass
class Job:
    """`arguments` of the command line, to be begun when the jobs `after` have ended well and the file `needs` exists."""

    name: str
    arguments: list[str]
    after: tuple[str, ...] = ()
    needs: Path | None = None
    state: str = "waits"  # runs, done, failed


def jobs_of(folder: Path, arms: list[str], prepare: list[str], retrieve: list[str]) -> list[Job]:
    """In the order in which idle GPUs take them. prepare, retrieve: further arguments of these commands."""
    jobs = [Job("prepare", ["prepare", *prepare])]
    for arm in arms:
        needs = folder / "dense" / "converted.pt" if arm == "msa-cpt" else None
        jobs.append(Job(f"train {arm}", ["train", "--arm", arm], ("prepare",), needs))
    for arm in filter(arms.__contains__, RETRIEVED):
        jobs.append(Job(f"retrieve {arm}", ["retrieve", "--arm", arm, *retrieve], (f"train {arm}",)))
    for arm in filter(arms.__contains__, RECORDED):
        jobs.append(Job(f"record {arm}", ["record", "--arm", arm], (f"train {arm}",)))
    return jobs


class Comparison:
    """front: what stands before the command on the command line, the same for all jobs."""

    def __init__(self, folder: Path, front: list[str], jobs: list[Job], gpus: list[int | None]):
        self.folder, self.front, self.jobs, self.gpus = folder, front, jobs, gpus
        self.lock = threading.Lock()
        for name in ("logs", "done"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for job in jobs:
            if self._mark(job).exists():
                job.state = "done"

    def run(self, every: float = 30.0) -> bool:
        """Whether all jobs ended well. Says every so many seconds where the trainings are."""
        workers = [threading.Thread(target=self._work, args=(gpu,), daemon=True) for gpu in self.gpus]
        for worker in workers:
            worker.start()
        for worker in workers:
            while worker.is_alive():
                worker.join(every)
                self._tell()
        return self._call(Job("report", ["report"]), None) and all(job.state == "done" for job in self.jobs)

    def _mark(self, job: Job) -> Path:
        return self.folder / "done" / job.name.replace(" ", "-")

    def _take(self) -> Job | None:
        states = {job.name: job.state for job in self.jobs}
        for job in self.jobs:
            is_ready = all(states[name] == "done" for name in job.after) and (job.needs is None or job.needs.exists())
            if job.state == "waits" and is_ready:
                job.state = "runs"
                return job
        return None

    def _work(self, gpu: int | None) -> None:
        while True:
            with self.lock:
                job = self._take()
                is_over = job is None and not any(other.state == "runs" for other in self.jobs)
            if is_over:  # nothing can begin any more
                return
            if job is None:
                time.sleep(0.2)
                continue
            is_done = self._call(job, gpu)
            if is_done:
                self._mark(job).touch()
            with self.lock:
                job.state = "done" if is_done else "failed"

    def _call(self, job: Job, gpu: int | None) -> bool:
        arguments = list(job.arguments)
        if arguments[0] == "train" and (self.folder / arguments[-1] / "checkpoint.pt").exists():
            arguments.append("--resume")
        environment = os.environ | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)})
        command = [sys.executable, str(Path(__file__).parents[1] / "train_lm.py"), *self.front, *arguments]
        begin = time.monotonic()
        print(f"{job.name}: begins{'' if gpu is None else f' on GPU {gpu}'}", flush=True)
        log = self.folder / "logs" / f"{job.name.replace(' ', '-')}.log"
        with log.open("a") as file:
            code = subprocess.call(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        end = "done" if code == 0 else f"failed, see {log}"
        print(f"{job.name}: {end} after {time.monotonic() - begin:.0f} s", flush=True)
        return code == 0

    def _tell(self) -> None:
        for job in self.jobs:
            log = self.folder / job.arguments[-1] / "log.jsonl" if job.name.startswith("train") else None
            if job.state != "runs" or log is None or not log.exists():
                continue
            steps = [line for line in log.read_text().splitlines() if '"kind": "step"' in line]
            if steps:
                last = json.loads(steps[-1])
                figures = f"loss {last['loss']:.4f}, KL {last['kl']:.4f}, {last['tokens_per_s']:.0f} tokens/s"
                print(f"{job.name}: {last['tokens'] / 1e6:.1f} million tokens, {figures}", flush=True)


def visible_gpus(device: str) -> list[int | None]:
    return list(range(torch.cuda.device_count())) if device == "cuda" else [None]
