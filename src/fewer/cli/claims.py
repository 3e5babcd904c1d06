"""fewer claims: to come."""


def claims() -> None:
    """To come."""
    raise ValueError("not yet here")
