"""What the house is kept with; none of it is in the wheel."""
