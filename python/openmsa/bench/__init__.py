"""openmsa beside what else is installed: ``python -m openmsa.bench``."""
