import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    """Each device that there is."""
    import openmsa
    import torch

    if request.param == "cuda" and (not torch.cuda.is_available() or "not built" in openmsa.cuda_device()):
        pytest.skip("no GPU, or openmsa without its CUDA backend")
    return request.param
