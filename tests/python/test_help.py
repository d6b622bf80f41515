"""What `help` shows: every keyword argument of every function, with its default and a line."""

import inspect

import openmsa
import pytest
from openmsa._call import Batch, Options

FUNCTIONS = [
    getattr(openmsa, name)
    for name in openmsa.__all__
    if inspect.isfunction(getattr(openmsa, name)) and getattr(openmsa, name).__module__ == "openmsa._functions"
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_every_option_is_there(function):
    parameters = inspect.signature(function).parameters
    assert not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    paged = "cu_seqlens_k" in parameters
    for name in Batch.__annotations__ if paged else Options.__annotations__:
        assert name in parameters and f"\n{name}" in function.__doc__
    assert parameters["block_size"].default == 128 and "keys per kv_block (128)" in function.__doc__
    assert parameters["softmax_scale"].default is None and "None: 1/sqrt(head_dim)" in function.__doc__


def test_functions_of_pytorch():
    pytest.importorskip("torch")
    import openmsa.torch

    for name in openmsa.torch.__all__:
        function = getattr(openmsa.torch, name)
        if inspect.isfunction(function):
            parameters = inspect.signature(function).parameters
            assert "backend" in parameters and "plan" not in parameters and "batch" not in parameters
            assert "\nbackend" in function.__doc__
