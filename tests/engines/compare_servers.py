#!/usr/bin/env python3
"""An engine's server as it is beside one with openmsa in it, on one GPU, asked over HTTP on loopback:

    tests/engines/compare_servers.py vllm                       # vLLM 0.33.0, beside openmsa
    tests/engines/compare_servers.py vllm --fp8                 # keys, values and index keys in e4m3, in both servers
    tests/engines/compare_servers.py vllm --drafts ngram        # and 15 tokens for each request to verify in a step
    tests/engines/compare_servers.py sglang --fp8               # SGLang 0.5.23

The model is a small MiniMax-M3 of random weights (openmsa.bench.engines). Printed are, for each prompt, how many greedy tokens
of /v1/completions are equal, how far the log-probabilities up to there are apart, and where tokens part how far the two
candidates are: within the noise of bf16 they are. With --forced also the log-probabilities of the prompts' own last tokens,
and with --noise how far each server is from itself where one request has all prompts: batches, and chunks of all but the
longest, are others then. With --drafts also how many of them were accepted; those of M3's own MTP layer are made in the server
with openmsa alone, since vLLM's Triton path does not run it.

Exit status 1 where a server does not start or answer, where the one with openmsa does not say that it serves all sparse layers,
where the other one says that it does, or where the candidates at which tokens part are more than --tolerance apart."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from openmsa.bench.engines._arms import Failed, words_in
from openmsa.bench.engines._checkpoint import VOCABULARY, Model, write_checkpoint

ARMS = ("stock", "openmsa")
PROMPTS = (300, 3000, 9000)
NEW_TOKENS, FORCED_TOKENS = 16, 512
DRAFTS = {"ngram": {"method": "ngram", "prompt_lookup_min": 1, "prompt_lookup_max": 4}, "mtp": {"method": "mtp"}}
CONTEXT, CHUNK, REQUESTS = 16384, 2048, 8


def add_tokenizer(folder: Path) -> None:
    """One word for each token, "t17", so that answers can be read."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "t0", "bos_token": "t1", "eos_token": "t2"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


#: `vllm serve`, in which layers of MTP have names of their own. vLLM 0.33.0 names them as the first layers of the model, which
#: M3's are not, since the names of its text model begin with language_model; those of a text model alone are, and it does not start.
MTP_SERVER = """
if __name__ == "__main__":
    from vllm.entrypoints.cli.main import main

    main()
else:  # the engine's process, which imports this file
    from vllm.models.minimax_m3.nvidia.mtp import MiniMaxM3MTP

    made = MiniMaxM3MTP.__init__
    MiniMaxM3MTP.__init__ = lambda self, *, vllm_config, prefix="": made(self, vllm_config=vllm_config, prefix=prefix or "mtp")
"""


def vllm_command(arm: str, model: Path, port: int, options: argparse.Namespace) -> list[str]:
    program = ["-m", "vllm.entrypoints.cli.main"]
    if options.drafts == "mtp" and has_drafts(arm, options):
        path = model / "serve_mtp.py"
        path.write_text(MTP_SERVER)
        program = [str(path)]
    command = [sys.executable, *program, "serve", str(model), "--host=127.0.0.1", f"--port={port}"]
    command += ["--block-size=128", f"--max-model-len={CONTEXT}", f"--max-num-batched-tokens={CHUNK}"]
    command += [f"--max-num-seqs={REQUESTS}", "--kv-cache-memory-bytes=1G", "--gpu-memory-utilization=0.1"]
    command += ["--no-enable-prefix-caching", "--attention-backend=TRITON_ATTN"]
    if options.fp8:
        command += ["--kv-cache-dtype=fp8_e4m3", '--attention-config={"indexer_kv_dtype": "fp8"}']
    if has_drafts(arm, options):
        drafts = DRAFTS[options.drafts] | {"num_speculative_tokens": options.num_drafts}
        command.append(f"--speculative-config={json.dumps(drafts)}")
    return command + [f'--additional-config={{"openmsa": {str(arm == "openmsa").lower()}}}']


def has_drafts(arm: str, options: argparse.Namespace) -> bool:
    """Whether a server gets drafts to verify."""
    return options.drafts is not None and (arm == "openmsa" or options.drafts != "mtp")


def sglang_command(arm: str, model: Path, port: int, options: argparse.Namespace) -> list[str]:
    """As python -m sglang.launch_server, which has no option that tells it that M3's vision part is not there."""
    arguments = {
        "model_path": str(model),
        "host": "127.0.0.1",
        "port": port,
        "dtype": "bfloat16",
        "page_size": 128,
        "context_length": CONTEXT,
        "chunked_prefill_size": CHUNK,
        "max_running_requests": REQUESTS,
        "max_total_tokens": 4 * CONTEXT,
        "disable_radix_cache": True,
        "enable_multimodal": False,
        "attention_backend": "triton",
    } | ({"kv_cache_dtype": "fp8_e4m3"} if options.fp8 else {})
    program = f"""
from sglang.launch_server import run_server
from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import ServerArgs

if __name__ == "__main__":
    load_plugins()
    run_server(ServerArgs(**{arguments!r}))
"""
    path = model / f"serve_{arm}.py"  # a file: SGLang's processes import it again
    path.write_text(program)
    return [sys.executable, str(path)]


COMMANDS = {"vllm": vllm_command, "sglang": sglang_command}


class Server:
    """A process in a session of its own, which ends with it; its log is `log`."""

    def __init__(self, arm: str, command: list[str], port: int, log: Path):
        self.arm, self.log, self._port = arm, log, port
        environment = dict(os.environ, OPENMSA_SGLANG=str(int(arm == "openmsa")))
        with log.open("w") as file:
            self._process = subprocess.Popen(
                command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait_until_ready(self, time_limit: float) -> None:
        end = time.monotonic() + time_limit
        while self._process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(OSError):
                self._call("/health", None, 5)
                return
            time.sleep(0.5)
        raise Failed(f"{self.arm}: expected a server in {time_limit:g} s, got none; the end of its log:\n{self._end()}")

    def ask(self, path: str, body: dict) -> dict:
        try:
            return json.loads(self._call(path, body, 120))
        except urllib.error.HTTPError as error:
            raise Failed(f"{self.arm}: {path}: {error}: {error.read()[:500]!r}") from None
        except OSError as error:
            raise Failed(f"{self.arm}: {path}: {error}; the end of its log:\n{self._end()}") from None

    def drafts(self) -> str:
        """How many of them were accepted, by vLLM's own count."""
        counts = {"accepted_tokens": 0.0, "draft_tokens": 0.0, "drafts": 0.0}
        for line in self._call("/metrics", None, 30).decode().splitlines():
            for name in counts:
                if line.startswith(f"vllm:spec_decode_num_{name}_total{{"):
                    counts[name] += float(line.split()[-1])
        return "{accepted_tokens:.0f} of {draft_tokens:.0f} accepted, in {drafts:.0f} steps of requests".format(
            **counts
        )

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def what_it_says(self) -> str:
        """Raises Failed where the layers are not served as the name says."""
        serves, leaves = words_in(self.log.read_text(errors="replace"))
        if self.arm == "stock" and serves:
            raise Failed(f"stock: expected the engine's own kernels, got {serves[0]}")
        if self.arm == "openmsa" and (not serves or leaves):
            raise Failed(f"openmsa: expected it in all sparse layers, got {leaves[0] if leaves else 'no word of it'}")
        return "; ".join(serves) or "nothing of openmsa"

    def _call(self, path: str, body: dict | None, timeout: float) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        url = f"http://127.0.0.1:{self._port}{path}"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.read()

    def _end(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


def prompt(num_tokens: int) -> list[int]:
    generator = random.Random(num_tokens)
    return [generator.randrange(3, VOCABULARY) for _ in range(num_tokens)]


def complete(server: Server, model: Path, sizes: tuple[int, ...], num_new: int) -> list[tuple[list[str], list[float]]]:
    """Of a request with a prompt of each size: greedy tokens and their log-probabilities, as OpenAI's API has them."""
    body = {"model": str(model), "prompt": [prompt(size) for size in sizes], "max_tokens": num_new}
    body |= {"temperature": 0, "logprobs": 1, "ignore_eos": True}
    choices = sorted(server.ask("/v1/completions", body)["choices"], key=lambda choice: choice["index"])
    return [(choice["text"].split(), choice["logprobs"]["token_logprobs"]) for choice in choices]


def forced(engine: str, server: Server, model: Path, sizes: tuple[int, ...]) -> list[list[float]]:
    """Of a request with a prompt of each size: log-probabilities of its last tokens, by what each engine adds to that API."""
    prompts = [prompt(size) for size in sizes]
    if engine == "vllm":
        body = {"model": str(model), "prompt": prompts, "max_tokens": 1, "prompt_logprobs": 0}
        choices = sorted(server.ask("/v1/completions", body)["choices"], key=lambda choice: choice["index"])
        ends = [choice["prompt_logprobs"][-FORCED_TOKENS:] for choice in choices]
        return [[next(iter(of_token.values()))["logprob"] for of_token in end] for end in ends]
    body = {"input_ids": prompts, "sampling_params": {"temperature": 0, "max_new_tokens": 1}, "return_logprob": True}
    answers = server.ask("/generate", body | {"logprob_start_len": [size - FORCED_TOKENS - 1 for size in sizes]})
    logs = [[entry[0] for entry in answer["meta_info"]["input_token_logprobs"]] for answer in answers]
    return [[log for log in of_prompt if log is not None][-FORCED_TOKENS:] for of_prompt in logs]


def mean_and_largest(first: list[float], second: list[float]) -> str:
    differences = [abs(one - other) for one, other in zip(first, second)]
    return f"{sum(differences) / len(differences):.3f}, {max(differences):.2f}"


def compare(
    stock: tuple[list[str], list[float]], ours: tuple[list[str], list[float]], tolerance: float
) -> tuple[str, bool]:
    """In words, and whether tokens part no earlier than noise lets them."""
    (stock_words, stock_logs), (words, logs) = stock, ours
    pairs = enumerate(zip(stock_words, words))
    equal = next((place for place, (one, other) in pairs if one != other), len(stock_words))
    text = f"{equal} of {len(stock_words)} tokens equal"
    if equal:
        text += f", log-probabilities apart by {mean_and_largest(stock_logs[:equal], logs[:equal])} (mean, largest)"
    if equal == len(stock_words) == len(words):
        return text, True
    gap = abs(stock_logs[equal] - logs[equal])
    return f"{text}; the candidates at which they part by {gap:.3f}", gap <= tolerance


def ask_all(options: argparse.Namespace, servers: list[Server], model: Path) -> bool:
    """Asks and prints; whether tokens of the two servers part no earlier than noise lets them."""
    engine, num_new, is_good = options.engine, options.new_tokens, True
    forced_sizes = PROMPTS[1:] if options.forced else ()
    answers = {(server, size): complete(server, model, (size,), num_new)[0] for size in PROMPTS for server in servers}
    logs = {(server, size): forced(engine, server, model, (size,))[0] for size in forced_sizes for server in servers}
    for size in PROMPTS:
        text, is_near = compare(*(answers[server, size] for server in servers), options.tolerance)
        is_good &= is_near
        print(f"{engine}, {size} tokens: {text}", flush=True)
    for size in forced_sizes:
        far = mean_and_largest(*(logs[server, size] for server in servers))
        print(f"{engine}, last {FORCED_TOKENS} of {size} tokens: {far}", flush=True)
    for server in servers if options.noise else ():
        sizes = PROMPTS[::-1]
        for size, answer in zip(sizes, complete(server, model, sizes, num_new)):
            text, _ = compare(answers[server, size], answer, options.tolerance)
            print(f"{server.arm} beside itself, {size} tokens: {text}", flush=True)
        forced_logs = forced(engine, server, model, sizes[:-1]) if options.forced else ()
        for size, log in zip(sizes, forced_logs):
            far = mean_and_largest(logs[server, size], log)
            print(f"{server.arm} beside itself, last {FORCED_TOKENS} of {size} tokens: {far}", flush=True)
    for server in servers:
        if has_drafts(server.arm, options):
            print(f"{server.arm}, drafts: {server.drafts()}", flush=True)
    return is_good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=COMMANDS)
    parser.add_argument("--fp8", action="store_true", help="e4m3 caches of keys, values and index keys")
    parser.add_argument("--forced", action="store_true", help="also the prompts' own log-probabilities")
    parser.add_argument("--noise", action="store_true", help="also each server beside itself, all prompts at once")
    parser.add_argument("--drafts", choices=DRAFTS, help="vLLM: where drafts come from (there are none)")
    parser.add_argument("--num-drafts", type=int, default=15, help="of each request in a step (15)")
    parser.add_argument(
        "--new-tokens", type=int, default=NEW_TOKENS, help=f"greedy tokens of each prompt ({NEW_TOKENS})"
    )
    parser.add_argument("--tolerance", type=float, default=0.1, help="of log-probabilities where tokens part (0.1)")
    parser.add_argument("--port", type=int, default=8100, help="and the next one (8100)")
    parser.add_argument("--logs", type=Path, default=Path("."), help="folder for what the servers print (.)")
    parser.add_argument("--time-limit", type=float, default=300.0, help="seconds for both to start (300)")
    options = parser.parse_args()
    if options.drafts and options.engine != "vllm":
        parser.error("--drafts: expected vllm, got sglang")
    servers: list[Server] = []
    with tempfile.TemporaryDirectory() as temporary:
        model = write_checkpoint(Model(num_layers=4, num_mtp=int(options.drafts == "mtp")), Path(temporary) / "model")
        add_tokenizer(model)
        try:
            for port, arm in enumerate(ARMS, options.port):
                command = COMMANDS[options.engine](arm, model, port, options)
                servers.append(Server(arm, command, port, options.logs / f"{options.engine}-{arm}.log"))
            for server in servers:
                server.wait_until_ready(options.time_limit)
            is_good = ask_all(options, servers, model)
            for server in servers:
                print(f"{server.arm} says: {server.what_it_says()}")
        except Failed as error:
            print(error, file=sys.stderr)
            return 1
        finally:
            for server in servers:
                server.close()
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
