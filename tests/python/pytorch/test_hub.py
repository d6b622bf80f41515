"""The kernel for Hugging Face's `kernels`: what its own checks say, and that it does what the package does. OPENMSA_HUB names
the repository that scripts/hub_kernel.py has written."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import openmsa
import openmsa.torch
import pytest
import torch

kernels = pytest.importorskip("kernels", reason="kernels is not installed")
if "OPENMSA_HUB" not in os.environ:
    pytest.skip("OPENMSA_HUB names no repository of scripts/hub_kernel.py", allow_module_level=True)
REPOSITORY = Path(os.environ["OPENMSA_HUB"]).resolve()
(VARIANT,) = (REPOSITORY / "build").glob("torch-stable-abi*-cpu-*")


@pytest.fixture(scope="module")
def kernel():
    return kernels.get_local_kernel(REPOSITORY, backend="cpu")


def metadata():
    from kernels._rust import Metadata

    return Metadata.read_from_file(VARIANT / "metadata.json")


def library(folder=VARIANT) -> Path:
    (path,) = folder.glob("*.so*")
    return path


def layer():
    generator = torch.Generator().manual_seed(7)
    shapes = {"q": (300, 8, 64), "k": (300, 2, 64), "v": (300, 2, 64), "index_q": (300, 2, 64), "index_k": (300, 64)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_kernels_reads_the_repository():
    from kernels._rust import Build, Digest

    backends = {str(backend) for backend in Build.open(REPOSITORY).general.backends}
    assert backends == {"cpu", "cuda"}
    found = metadata()
    assert (str(found.name), found.version, str(found.backend.backend_type)) == ("openmsa", 1, "cpu")
    found.digest.validate(Digest.hash_variant(found.digest.algorithm, VARIANT))


def test_a_changed_file_is_noticed(tmp_path):
    from kernels._rust import Digest, DigestValidationError

    changed = tmp_path / VARIANT.name
    subprocess.run(["cp", "-r", VARIANT, changed], check=True)
    (changed / "__init__.py").write_text("")
    with pytest.raises(DigestValidationError):
        metadata().digest.validate(Digest.hash_variant(metadata().digest.algorithm, changed))


def test_the_library_runs_on_old_systems():
    object_file = pytest.importorskip("kernel_abi_check", reason="kernel-abi-check is not installed").ObjectFile
    checked = object_file(str(library()))
    assert not checked.check_manylinux("manylinux_2_28")
    assert not checked.check_python_abi("3.9")
    assert checked.check_manylinux("manylinux_2_17")  # it sees the symbols


def test_the_library_needs_no_other_but_those_of_the_system():
    listed = subprocess.run(["readelf", "--dynamic", library()], check=True, capture_output=True, text=True).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", listed))
    assert "libc.so.6" in needed
    assert needed <= {
        "libc.so.6",
        "libm.so.6",
        "libgcc_s.so.1",
        "libpthread.so.0",
        "libdl.so.2",
        "ld-linux-x86-64.so.2",
    }


def test_results_and_gradients_are_those_of_the_package(kernel):
    results = []
    for module in (kernel, openmsa.torch):
        tensors = {name: tensor.requires_grad_() for name, tensor in layer().items()}
        o, lse = module.msa_attention(**tensors, block_size=32, topk=4, return_lse=True)
        (o.square().mean() + lse.mean()).backward()
        results.append([o, lse, *(tensors[name].grad for name in "qkv")])
    for of_kernel, of_package in zip(*results):
        assert of_kernel.abs().max() > 0
        assert torch.equal(of_kernel, of_package)


def test_a_paged_cache(kernel):
    shape = {"num_pages": 10, "page_size": 32, "num_heads_kv": 2, "head_dim": 64, "index_dim": 64, "max_batch": 1}
    tensors = layer()
    bounds = torch.tensor([0, 300], dtype=torch.int32)
    results = []
    for module in (kernel, openmsa.torch):
        cache = module.KVCache(**shape, max_seqlen_k=320, block_size=32)
        cache.extend(cache.add(), 300)
        cache.upload()
        cache.append(0, *(tensors[name] for name in ("k", "v", "index_k")), cu_seqlens_q=bounds)
        last = {"q": tensors["q"][-2:], "index_q": tensors["index_q"][-2:]}
        results.append(module.msa_attention(**last, **cache.tensors(0), block_size=32, topk=4))
    assert results[0].abs().max() > 0
    assert torch.equal(*results)


def test_operators_have_a_namespace_of_their_own(kernel):
    name = metadata().id
    assert kernel.__name__ == name == library().name.removesuffix(".abi3.so")
    operators = getattr(torch.ops, name)
    assert operators.select_blocks is not torch.ops.openmsa.select_blocks
    tensors = layer()
    index = {"index_q": tensors["index_q"], "index_k": tensors["index_k"]}
    assert torch.equal(operators.select_blocks(**index), openmsa.select_blocks(**index))
    torch.library.opcheck(operators.select_blocks.default, (index["index_q"], index["index_k"]))


@pytest.mark.parametrize(
    "option",
    [
        {"num_heads_q": 3},
        {"num_threads": 1 << 40},
        {"num_threads": 1.5},
        {"topk": "16"},
        {"dtype": "int8"},
        {"dtype": 8},
        {"backend": "gpu"},
        {"index_q_rounding": "up"},
        {"index_scale_per_block": 2},
        {"softmax_scale": "a"},
        {"head_dim": 7},
    ],
    ids=str,
)
def test_refusals_are_those_of_the_package(kernel, option):
    shape = {"num_heads_q": 8, "num_heads_kv": 2, "head_dim": 64, "index_dim": 64, "max_total_q": 1, "max_seqlen_k": 9}
    with pytest.raises((TypeError, ValueError, openmsa.Error)) as of_package:
        openmsa.Plan(**shape | option)
    with pytest.raises(kernel.Error if of_package.type is openmsa.Error else of_package.type) as of_kernel:
        kernel.Plan(**shape | option)
    assert str(of_kernel.value) == str(of_package.value)


def test_what_is_not_served_is_an_error_of_the_kernel(kernel):
    with pytest.raises(kernel.Error, match="unsupported"):
        kernel.dense_attention(*(tensor.bfloat16() for tensor in list(layer().values())[:3]), backend="cuda")


def test_it_needs_pytorch_alone():
    load = f"""
import importlib.util, sys
sys.modules["numpy"] = None
import torch
spec = importlib.util.spec_from_file_location({metadata().id!r}, {str(VARIANT / "__init__.py")!r})
kernel = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernel)
print(kernel.topk(torch.tensor([[[1.0, 3.0, 2.0]]]), torch.tensor([300], dtype=torch.int32), topk=2).tolist())
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", load], capture_output=True, text=True)
    assert done.stdout.strip() == "[[[1, 2]]]", done.stderr


def test_older_versions_of_kernels_find_it(kernel):
    path = VARIANT / "openmsa/__init__.py"
    load = f"import runpy; found = runpy.run_path({str(path)!r}); print(*sorted(set(found['__all__']) & set(found)))"
    done = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True)
    assert done.stdout.split() == sorted(kernel.__all__), done.stderr


def test_its_python_is_that_of_the_oldest_python_of_kernels():
    files = sorted(VARIANT.rglob("*.py"))
    assert len(files) > 20
    for path in files:
        ast.parse(path.read_text(), feature_version=(3, 10))
