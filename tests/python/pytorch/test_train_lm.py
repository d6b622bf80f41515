"""examples/train_lm at its smallest: it learns, goes on exactly, and its text, pages, facts and recordings are what they say."""

import dataclasses
import importlib
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[3] / "examples"
pytest.importorskip("tokenizers", reason="tokenizers is not installed")
pytest.importorskip("PIL", reason="pillow is not installed")
if not EXAMPLES.exists():
    pytest.skip("no examples beside the tests", allow_module_level=True)


@pytest.fixture(scope="module")
def lm():
    """The package's modules by name."""
    sys.path.insert(0, str(EXAMPLES))
    names = (
        "command",
        "text",
        "pages",
        "facts",
        "sequences",
        "settings",
        "training",
        "selections",
        "comparison",
        "report",
    )
    yield {name: importlib.import_module(f"train_lm.{name}") for name in names}
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def folder(lm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("train_lm")
    lm["text"].prepare(folder / "text", lm["settings"].SMOKE_SHAPE.vocab_size, most_bytes=1_000_000)
    return folder


def run(lm, folder, *arguments):
    lm["command"].main(["--smoke", "--folder", str(folder), "--device", "cpu", *arguments])


def log(folder, arm, kind):
    lines = [json.loads(line) for line in (folder / arm / "log.jsonl").open()]
    return [line for line in lines if line["kind"] == kind]


@pytest.fixture(scope="module")
def trained(lm, folder):
    for arm in ("dense", "msa-pt", "msa-cpt"):
        run(lm, folder, "train", "--arm", arm)
    return folder


def test_every_arm_learns(trained):
    for arm in ("dense", "msa-pt"):
        losses = [line["loss"] for line in log(trained, arm, "step")]
        assert sum(losses[-5:]) < 0.95 * sum(losses[:5]), arm
    kl = [line["kl"] for line in log(trained, "msa-pt", "step")]
    assert kl[-1] < kl[0]
    dense, sparse, converted = (log(trained, arm, "evaluation")[-1] for arm in ("dense", "msa-pt", "msa-cpt"))
    assert dense["tokens"] == sparse["tokens"] == converted["tokens"]
    assert abs(sparse["held_out_all"] - dense["held_out_all"]) < 0.1
    assert abs(converted["held_out_all"] - dense["held_out_all"]) < 0.1
    assert "kl" not in dense and all(0 < share <= 1 for share in sparse["block_recall"] + sparse["score_recall"])


def test_the_converted_arm_begins_with_the_twins_checkpoint(trained):
    steps = log(trained, "msa-cpt", "step")
    assert steps[0]["step"] > 20 and steps[0]["kl"] > 0
    twin = {line["step"]: line["loss"] for line in log(trained, "dense", "step")}
    assert steps[0]["loss"] == pytest.approx(twin[steps[0]["step"]], abs=1e-4), "dense attention, the same weights"


@pytest.mark.parametrize("stop", [3, 17])  # while the index branch warms up, and after it
def test_resuming_is_exact(lm, trained, tmp_path, stop):
    settings = lm["settings"]
    held_in = lm["sequences"].Sequences(lm["text"].load(trained / "text", "train"), settings.SMOKE_RECIPE, False)
    make = lambda: lm["training"].Training(  # noqa: E731
        "msa-pt", tmp_path, settings.SMOKE_SHAPE, settings.SMOKE_RECIPE, held_in, "cpu"
    )
    first = make()
    for _ in range(stop):
        first.step()
    first.save()
    second = make()
    second.resume()
    assert second.run(lambda training: {})
    expected, result = (torch.load(path / "checkpoint.pt") for path in (trained / "msa-pt", tmp_path))
    for name, weight in expected["model"].items():
        assert torch.equal(weight, result["model"][name]), name


def test_backward_leaves_the_kl_of_the_forward_pass(lm, trained, tmp_path):
    """While the index branch warms up, after it, and over a long sequence, whose layers run again in backward."""
    settings = lm["settings"]
    held_in = lm["sequences"].Sequences(lm["text"].load(trained / "text", "train"), settings.SMOKE_RECIPE, False)
    training = lm["training"].Training("msa-pt", tmp_path, settings.SMOKE_SHAPE, settings.SMOKE_RECIPE, held_in, "cpu")
    for number in (0, 12, len(training.steps) - 1):
        training.next_step, step = number, training.steps[number]
        training.model.set_warmup(training.is_warmup(step))
        with torch.no_grad():
            expected = training.model(held_in[number, step.length])[1].sum()
        assert training.step()["kl"] == expected and expected > 0


def test_minutes_end_a_run_that_goes_on(lm, folder, tmp_path):
    (tmp_path / "text").symlink_to(folder / "text")
    arguments = ("--steps", "4", "--long-share", "0", "train", "--arm", "no-warmup")
    run(lm, tmp_path, *arguments, "--minutes", "0")
    assert [line["step"] for line in log(tmp_path, "no-warmup", "step")] == [1]
    run(lm, tmp_path, *arguments, "--resume")
    assert [line["step"] for line in log(tmp_path, "no-warmup", "step")] == [1, 2, 3, 4]


def test_sequences(lm, folder):
    """The same number is the same sequence; patches stand where their token is; every answer was told before."""
    text, recipe = lm["text"], lm["settings"].SMOKE_RECIPE
    corpus = text.load(folder / "text", "held_out")
    recipe = dataclasses.replace(recipe, context=2048, facts=3, pages=2)
    sequences = lm["sequences"].Sequences(corpus, recipe, is_held_out=True)
    one, again, other = sequences[5, 2048], sequences[5, 2048], sequences[6, 2048]
    assert torch.equal(one.ids, again.ids) and not torch.equal(one.ids, other.ids)
    assert len(one.ids) == len(one.targets) == len(one.kinds) == 2048
    assert torch.equal(one.places, (one.ids == text.IMAGE).nonzero().flatten()) and len(one.patches) == len(one.places)
    counted = one.targets[:-1] >= 0
    assert torch.equal(one.targets[:-1][counted], one.ids[1:][counted])
    assert (one.ids[1:][~counted] == text.IMAGE).all() and len(one.places) == 2 * recipe.page_lines * 10
    told = corpus.decode(one.ids[one.ids != text.IMAGE].numpy())
    answers = corpus.decode(one.targets[one.kinds == lm["sequences"].ANSWER].numpy()).split()
    assert len(answers) == 3 * recipe.facts, "one token each"
    lines = re.findall(r"\n# note: ([a-z]+) ([a-z]+)(?=\n)", told)
    keys, values = zip(*set(lines))
    assert len(lines) == 4 * recipe.facts and sorted(3 * values) == sorted(answers)
    assert not set(keys) & set(values)


def test_questions_are_near_their_facts_and_far(lm, folder):
    corpus = lm["text"].load(folder / "text", "train")
    words = ["".join(letters) for letters in itertools.islice(itertools.product("abcde", repeat=4), 200)]
    corpus = dataclasses.replace(corpus, words=words)  # many, if of several tokens
    recipe = dataclasses.replace(lm["settings"].SMOKE_RECIPE, context=32768, facts=48)
    sequence = lm["sequences"].Sequences(corpus, recipe, is_held_out=False)[1, 32768]
    lines = re.finditer(r"\n# note: ([a-z]+) [a-z]+(?=\n)", corpus.decode(sequence.ids.numpy()))
    places = {}
    for line in lines:
        places.setdefault(line[1], []).append(line.start())  # of characters, two or so to a token
    visits = 1 + lm["sequences"].QUESTIONS
    assert len(places) == recipe.facts and all(len(of_one) == visits for of_one in places.values())
    distances = np.array([place - told for told, *asked in places.values() for place in asked])
    assert (distances < 500).sum() > 30 and (distances > 8000).sum() > 20


def test_pages(lm):
    """Patches of a page are its characters: two lines that begin alike share their first patches, and blanks are 0."""
    page = lm["pages"].patches("def f(x): return 1\ndef f(x): return 2\n", 4).reshape(4, 10, -1)
    assert (page[0, :2] == page[1, :2]).all() and (page[0, 2] != page[1, 2]).any()
    assert page[0].any() and not page[0, 3:].any() and not page[2:].any()


def test_files_are_held_out(lm):
    files = [path for path, _ in lm["text"].source_files(2_000_000)]
    held_out = [path for path in files if lm["text"].is_held_out(path)]
    assert 0 < len(held_out) < 0.1 * len(files) and len(set(files)) == len(files)


def test_schedule(lm):
    recipe = dataclasses.replace(lm["settings"].SMOKE_RECIPE, steps=40, long_share=0.1)
    steps = lm["training"].schedule(recipe)
    assert [step.length for step in steps] == [128] * 8 + [256] * 32 + [512] * 2
    assert steps[-1].share == 38 / 40 and [step.number for step in steps] == list(range(42))


def test_recording(lm, trained):
    run(lm, trained, "record", "--arm", "msa-pt")
    recording = np.load(trained / "msa-pt" / "selections.npz")
    assert recording["topk_256"].shape == (2, 1, 256, 4) and recording["topk_512"].shape == (2, 1, 512, 4)
    indices = recording["topk_256"].astype(np.int32)
    assert (indices[:, :, 128:, -1] == np.arange(128, 256) // 16).all(), "the last is the query's own kv_block"
    assert (trained / "msa-pt" / "selections.png").stat().st_size > 5000


def test_counts(lm):
    """Two queries in turn, {0, 1} and {0, 3}: half is shared, three kv_blocks in all."""
    indices = np.array([[0, 1], [0, 3]] * 32, np.int32)[None]
    found = lm["selections"].counts(indices)
    assert found == {
        "shared_with_next": 0.5,
        "blocks_of_64": 3.0,
        "chosen_twice": 1.0,
        "adjacent": 0.25,
        "most_visits": 1.0,
    }


def test_retrieval_and_report(lm, trained):
    run(lm, trained, "retrieve", "--arm", "msa-pt", "--questions", "2", "--longest", "300")
    assert json.loads((trained / "msa-pt" / "retrieval.json").read_text()) == {"300": 0.0}
    run(lm, trained, "report")
    lines = (trained / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["| arm", "| ---", "| dense", "| msa-pt", "| msa-cpt"]
    assert (trained / "curves.svg").read_text().count("<path") > 20


def test_the_whole_comparison(tmp_path):
    """By commands of its own; begun again, it does nothing twice."""
    command = [sys.executable, str(EXAMPLES / "train_lm.py"), "--smoke", "--device", "cpu", "--folder", str(tmp_path)]
    command += ["--steps", "8", "all", "--arms", "dense", "--text-bytes", "1000000", "--questions", "1"]
    command += ["--longest", "256"]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    for job in ("prepare", "train dense", "retrieve dense"):
        assert f"{job}: done" in first and job not in second
    assert "report: done" in second and len((tmp_path / "table.md").read_text().splitlines()) == 3


def test_order_of_jobs(lm, tmp_path):
    jobs = lm["comparison"].jobs_of(tmp_path, list(lm["settings"].ARMS), [], ["--questions", "2"])
    trainings = [f"train {arm}" for arm in ("dense", "msa-pt", "msa-cpt", "no-detach", "no-warmup")]
    assert [job.name for job in jobs][:6] == ["prepare", *trainings]
    by_name = {job.name: job for job in jobs}
    assert by_name["train msa-cpt"].needs == tmp_path / "dense" / "converted.pt"
    assert by_name["record msa-cpt"].after == ("train msa-cpt",)
    assert by_name["retrieve dense"].arguments == ["retrieve", "--arm", "dense", "--questions", "2"]


def test_a_job_that_fails_holds_up_its_own(lm, tmp_path):
    jobs = lm["comparison"].jobs_of(tmp_path, ["dense", "msa-cpt"], [], [])
    front = ["--smoke", "--device", "cpu", "--folder", str(tmp_path), "--answer-weight", "nan-sense"]
    assert not lm["comparison"].Comparison(tmp_path, front, jobs, [None]).run(every=0.1)
    assert [job.state for job in jobs] == ["failed"] + ["waits"] * (len(jobs) - 1)
