"""fewer measure: to come."""


def measure() -> None:
    """To come."""
    raise ValueError("not yet here")
