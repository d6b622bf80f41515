"""One training: its schedule, its steps, and checkpoints from which it goes on exactly."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from pathlib import Path

import torch

from .model import Decoder
from .sequences import ANSWER, Sequences
from .settings import ARMS, Recipe, Shape


@dataclasses.dataclass(frozen=True)
class Step:
    """number: of the sequence, the same in every arm; share: of the training that lies before it."""

    number: int
    length: int
    share: float


def schedule(recipe: Recipe) -> list[Step]:
    """Short sequences, then those of `context` tokens, then long ones."""
    lengthening, shortening = recipe.long_context // recipe.context, recipe.context // recipe.short_context
    num_long = int(recipe.steps * recipe.long_share) // lengthening
    num_short = int(recipe.steps * recipe.short_share) * shortening
    num_others = recipe.steps - num_short // shortening - num_long * lengthening
    lengths = [recipe.short_context] * num_short + [recipe.context] * num_others + [recipe.long_context] * num_long
    steps, tokens = [], 0
    for number, length in enumerate(lengths):
        steps.append(Step(number, length, tokens / (recipe.steps * recipe.context)))
        tokens += length
    return steps


class Training:
    """The arm `name`, whose files lie in `folder`: log.jsonl, checkpoint.pt, and of the dense twin also converted.pt, with
    which msa-cpt begins."""

    def __init__(self, name: str, folder: Path, shape: Shape, recipe: Recipe, sequences: Sequences, device: str):
        self.name, self.arm, self.folder, self.recipe, self.device = name, ARMS[name], folder, recipe, device
        self.sequences = sequences
        model = Decoder(shape, self.arm)
        model.initialize(recipe.seed)
        self.model = model.to(device)
        self.branches = _branches(self.model)
        self.optimizer = _optimizer(self.model, recipe, device)
        self.steps = schedule(recipe)
        self.next_step, self.seconds = 0, 0.0
        folder.mkdir(parents=True, exist_ok=True)

    # ------------------------------------------------------------------------------------------------------- schedule

    @property
    def convert_step(self) -> int:
        return next(step.number for step in self.steps if step.share >= self.recipe.convert_share)

    def is_warmup(self, step: Step) -> bool:
        """Whether attention is still dense while the index branch learns."""
        begin = self.recipe.convert_share if self.arm.is_converted else 0.0
        return self.arm.has_warmup and step.share < begin + self.recipe.index_warmup_share

    def learning_rate(self, step: Step) -> float:
        """Rises over learning_rate_warmup steps, then falls to a tenth as a cosine."""
        rise = min((step.number + 1) / self.recipe.learning_rate_warmup, 1.0)
        return self.recipe.learning_rate * rise * (0.55 + 0.45 * math.cos(math.pi * step.share))

    # ---------------------------------------------------------------------------------------------------------- steps

    def step(self) -> dict[str, torch.Tensor]:
        """One step; the losses as tensors, so that nobody waits for them."""
        step = self.steps[self.next_step]
        sequence = self.sequences[step.number, step.length].to(self.device)
        self.model.set_warmup(self.is_warmup(step))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        with self.autocast():
            hidden, kl_losses = self.model(sequence, recomputes=step.length > self.recipe.context)
            losses = self.model.token_losses(hidden, sequence.targets) / (sequence.targets >= 0).sum()
        loss, answers = losses.sum(), (losses * (sequence.kinds == ANSWER)).sum()
        self.optimizer.zero_grad()
        (loss + (self.recipe.answer_weight - 1) * answers + self.recipe.kl_weight * kl_losses.sum()).backward()
        for parameters in self.branches:  # each for itself: kl_loss shortens no step of what it does not train
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        self.next_step += 1
        return {"loss": loss.detach(), "kl": self.model.kl_values().sum()}

    def autocast(self):
        return torch.autocast("cuda", torch.bfloat16) if self.device == "cuda" else contextlib.nullcontext()

    def run(self, evaluate, minutes: float | None = None) -> bool:
        """Trains to the end, or for so many minutes; returns whether the end was reached. evaluate(self) -> dict."""
        begin = last = time.perf_counter()
        tokens = 0
        while self.next_step < len(self.steps):
            tokens += self.steps[self.next_step].length
            losses = self.step()
            done = self.next_step
            if done % self.recipe.log_every == 0 or done == len(self.steps):
                figures = {name: loss.item() for name, loss in losses.items()}  # waits for the step
                now = time.perf_counter()
                self.seconds += now - last
                self._log("step", {"length": self.steps[done - 1].length} | figures | self._cost(tokens / (now - last)))
                last, tokens = now, 0
            if self._reaches(self.recipe.evaluate_every) or done == len(self.steps):
                self._log("evaluation", evaluate(self))
                last = time.perf_counter()
            if self.name == "dense" and done == self.convert_step:
                self.save("converted.pt")
                last = time.perf_counter()
            if minutes is not None and time.perf_counter() - begin >= 60 * minutes:
                break
            if self._reaches(self.recipe.checkpoint_every):
                self.save()
                last = time.perf_counter()
        self.save()
        return self.next_step == len(self.steps)

    def _reaches(self, every: int) -> bool:
        """Whether the last step came to another multiple of `every` times `context` tokens."""
        last = self.steps[self.next_step - 1]
        begin = round(last.share * self.recipe.steps * self.recipe.context)
        return (begin + last.length) // (every * self.recipe.context) > begin // (every * self.recipe.context)

    def _cost(self, tokens_per_second: float) -> dict:
        cost = {"tokens_per_s": round(tokens_per_second, 1), "seconds": round(self.seconds, 2)}
        if self.device == "cuda":
            cost["memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        return cost

    def _log(self, kind: str, figures: dict) -> None:
        tokens = sum(step.length for step in self.steps[: self.next_step])
        line = {"kind": kind, "step": self.next_step, "tokens": tokens} | figures
        print(f"{self.name}: {json.dumps(line)}", flush=True)
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    # ---------------------------------------------------------------------------------------------------- checkpoints

    def save(self, file: str = "checkpoint.pt") -> None:
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        states = {names[parameter]: state for parameter, state in self.optimizer.state.items()}
        content = {"model": self.model.state_dict(), "optimizer": states}
        content |= {"next_step": self.next_step, "seconds": self.seconds}
        path = self.folder / file
        torch.save(content, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)

    def resume(self) -> None:
        """Goes on where the last checkpoint was written; what the log says of later steps is dropped."""
        self.load(self.folder / "checkpoint.pt")
        log = self.folder / "log.jsonl"
        lines = log.read_text().splitlines(keepends=True) if log.exists() else []
        log.write_text("".join(line for line in lines if json.loads(line)["step"] <= self.next_step))

    def begin(self, dense_folder: Path) -> None:
        """From the first step; msa-cpt from the dense twin's checkpoint, whose index branch is as it was made."""
        (self.folder / "log.jsonl").unlink(missing_ok=True)
        if self.arm.is_converted:
            self.load(dense_folder / "converted.pt")
            self.seconds = 0.0

    def load(self, path: Path) -> None:
        if not path.exists():
            raise SystemExit(f"train_lm: {path}: expected a checkpoint")
        content = torch.load(path, map_location=self.device)
        missing, unexpected = self.model.load_state_dict(content["model"], strict=False)
        assert not unexpected and all(".indexer." in name for name in missing), (missing, unexpected)
        for name, parameter in self.model.named_parameters():
            if name in content["optimizer"]:
                self.optimizer.state[parameter] = content["optimizer"][name]
        self.next_step, self.seconds = content["next_step"], content["seconds"]


def _optimizer(model: Decoder, recipe: Recipe, device: str) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim != 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=device == "cuda")


def _branches(model: Decoder) -> list[list[torch.nn.Parameter]]:
    """Parameters of the model and of its index branches."""
    named = list(model.named_parameters())
    return [[parameter for name, parameter in named if (".indexer." in name) == is_index] for is_index in (False, True)]
