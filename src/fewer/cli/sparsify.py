"""fewer sparsify: to come."""


def sparsify() -> None:
    """To come."""
    raise ValueError("not yet here")
