"""fewer frontier: to come."""


def frontier() -> None:
    """To come."""
    raise ValueError("not yet here")
