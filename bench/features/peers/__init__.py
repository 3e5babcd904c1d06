"""Others' training steps, each in an environment of its own: what `bench.features.peers` runs."""
