"""tests/engines/compare_servers.py with servers that are no engines: what it prints and when it fails."""

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")
pytest.importorskip("tokenizers", reason="tokenizers is not installed")

SERVER = """
import http.server, json, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer({"choices": [self.choice(body, *prompt) for prompt in enumerate(body["prompt"])][::-1]})

    def choice(self, body, index, prompt):
        if "prompt_logprobs" in body:
            log = -1.0 - NOISE * (len(body["prompt"]) > 1)
            return {"index": index, "prompt_logprobs": [None] + [{"7": {"logprob": log}}] * (len(prompt) - 1)}
        words, logs = ["t3"] * body["max_tokens"], [-1.0] * body["max_tokens"]
        if len(prompt) == PARTS_AT:
            words[5:], logs[5] = ["t4"] * 11, -1.0 - GAP
        return {"index": index, "text": " ".join(words), "logprobs": {"token_logprobs": logs}}

    def answer(self, value):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, *args):
        pass

print(SAYS, flush=True)
http.server.HTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
"""
SERVES = "openmsa 0.1.0 serves 3 of 3 sparse layers"


@pytest.fixture
def run(monkeypatch, tmp_path, unused_port):
    path = Path(__file__).parents[1] / "engines/compare_servers.py"
    spec = importlib.util.spec_from_file_location("compare_servers", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*options, gap=0.0, says=("", SERVES), noise=(0.0, 0.0)):
        def command(arm, model, port, is_fp8):
            values = {"PARTS_AT": 0 if arm == "stock" else 3000, "GAP": gap, "PORT": port}
            values["SAYS"] = repr(says[module.ARMS.index(arm)])
            values["NOISE"] = noise[module.ARMS.index(arm)]
            return [sys.executable, "-c", "".join(f"{name} = {value}\n" for name, value in values.items()) + SERVER]

        monkeypatch.setitem(module.COMMANDS, "vllm", command)
        arguments = ["vllm", "--logs", str(tmp_path), "--port", str(unused_port), "--time-limit", "30", *options]
        monkeypatch.setattr(sys, "argv", ["compare_servers.py", *arguments])
        return module.main()

    return run


@pytest.fixture
def unused_port():
    """Of two ports, one after the other."""
    import socket

    for port in range(18100, 18200, 2):
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
    pytest.skip("no two ports beside each other are free")


def test_what_parts_within_noise_is_no_failure(run, capsys):
    assert run(gap=0.03) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "vllm, 300 tokens: 16 of 16 tokens equal, log-probabilities apart by 0.000, 0.00 (mean, largest)"
    assert lines[1].startswith("vllm, 3000 tokens: 5 of 16 tokens equal")
    assert lines[1].endswith("the candidates at which they part by 0.030")
    assert lines[-1] == f"openmsa says: {SERVES}"


def test_what_parts_farther_is_one(run):
    assert run(gap=0.5) == 1


def test_noise_is_how_far_a_server_is_from_itself(run, capsys):
    assert run("--forced", "--noise", noise=(0.25, 0.5)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "vllm, last 512 of 9000 tokens: 0.000, 0.00" in lines
    assert "stock beside itself, last 512 of 9000 tokens: 0.250, 0.25" in lines
    assert "openmsa beside itself, last 512 of 3000 tokens: 0.500, 0.50" in lines
    assert sum("beside itself" in line for line in lines) == 2 * (3 + 2)


@pytest.mark.parametrize(
    ("says", "message"),
    [
        (("", ""), "openmsa: expected it in all sparse layers, got no word of it"),
        (("", SERVES + "\nopenmsa leaves 1 of 3 to vLLM: x"), "got openmsa leaves 1 of 3 to vLLM: x"),
        ((SERVES, SERVES), "stock: expected the engine's own kernels, got openmsa"),
    ],
)
def test_servers_have_to_say_what_they_are(run, says, message, capsys):
    assert run(says=says) == 1
    assert message in capsys.readouterr().err
