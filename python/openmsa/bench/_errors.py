"""Why a contender has no figure, where it is installed."""


class Refused(RuntimeError):
    """It has nothing for this case."""


class Wrong(RuntimeError):
    """It computed something else."""
