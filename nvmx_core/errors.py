"""Our own mistakes, kept apart from findings and from what the architecture does."""


class ModelError(Exception):
    """The model contradicts itself: a bug of this project, never a finding about an L0.

    Raised for unreachable branches, for the reading of an undefined field, and for a hole in a table.
    """
