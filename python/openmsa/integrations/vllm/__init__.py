"""MiniMax-M3 in vLLM on openmsa: selection and attention of its sparse layers, on the engine's own caches.

    vllm serve ... --additional-config '{"openmsa": true}'      # or OPENMSA_VLLM=1 in the environment
    vllm serve ... --additional-config '{"openmsa": {"shard_index": true}}'     # the index branch divided among ranks

vLLM finds `register` by its entry point (group vllm.general_plugins) in each of its processes. Models of M3 are then
made by subclasses of vLLM's own, which change nothing until they are asked to: see _model. docs/serving.md says what is
served."""

from __future__ import annotations

import os
from typing import NamedTuple

#: Versions of vLLM that the tests pass with.
TESTED = ("0.33.0",)

_CLASSES = {"MiniMaxM3SparseForCausalLM": "OpenmsaM3ForCausalLM", "MiniMaxM3MTP": "OpenmsaM3MTP"}


def register() -> None:
    """Registers the classes for M3's text model and its MTP model with vLLM. May be called again, imports no CUDA. With
    a version of vLLM that is not in TESTED nothing is registered, and a warning names the versions."""
    import vllm

    if vllm.__version__.partition("+")[0] not in TESTED:  # 0.33.0+cu130 is the same for another CUDA
        logger().warning(
            "openmsa: expected vLLM %s, got %s; MiniMax-M3 stays with vLLM's own kernels",
            " or ".join(TESTED),
            vllm.__version__,
        )
        return
    for architecture, name in _CLASSES.items():
        vllm.ModelRegistry.register_model(architecture, f"{__name__}._model:{name}")


class Options(NamedTuple):
    """What the plug-in is asked to do.

    is_on         serve the sparse layers
    shard_index   with tensor parallelism, let each rank score its share of the kv_blocks
    """

    is_on: bool = False
    shard_index: bool = False


def requested(vllm_config) -> Options:
    """What vLLM's --additional-config says of "openmsa", true, false or options by name; where it says nothing, whether
    OPENMSA_VLLM is 1."""
    additional = vllm_config.additional_config
    if isinstance(additional, dict) and "openmsa" in additional:
        value, name = additional["openmsa"], "additional_config['openmsa']"
        if isinstance(value, bool):
            return Options(value)
        if not isinstance(value, dict) or not set(value) <= {"shard_index"}:
            raise ValueError(f"{name}: expected true, false or {{'shard_index': true}}, got {value!r}")
        if not isinstance(value.get("shard_index", False), bool):
            raise ValueError(f"{name}['shard_index']: expected true or false, got {value['shard_index']!r}")
        return Options(True, **value)
    value = os.environ.get("OPENMSA_VLLM", "0")
    if value not in ("0", "1"):
        raise ValueError(f"OPENMSA_VLLM: expected 0 or 1, got {value!r}")
    return Options(value == "1")


def logger():
    """Below vLLM's own logger, whose handlers and level it takes."""
    from vllm.logger import init_logger

    return init_logger("vllm.plugins.openmsa")
