"""One file for each other library, run by its own interpreter: it imports nothing of ours."""
