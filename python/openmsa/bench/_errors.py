"""Why a contender has no figure, where it is installed."""


class Refused(RuntimeError):
    """The contender has nothing for this case."""


class Wrong(RuntimeError):
    """The contender computed something else."""
