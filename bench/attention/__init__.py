"""What sparse attention keeps, costs and saves."""
