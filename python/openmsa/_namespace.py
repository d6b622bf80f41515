"""The namespace of the operators in torch.ops. Copies of this package that are loaded beside one another, as kernels of the
Hugging Face Hub are, have another name here: scripts/hub_kernel.py."""

NAMESPACE = "openmsa"
