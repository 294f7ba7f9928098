"""What a run needs around its mathematics: configuration, seeds, devices, checkpoints, trackers, weights."""
