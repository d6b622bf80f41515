import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    """Each device that there is."""
    import openmsa

    if request.param == "cuda" and (not torch.cuda.is_available() or "not built" in openmsa.cuda_device()):
        pytest.skip("no GPU, or openmsa without its CUDA backend")
    return request.param
