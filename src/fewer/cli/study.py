"""fewer study."""
def study() -> None:
    """x"""
