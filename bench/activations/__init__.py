"""What gates cost and gain."""
