"""What every training shares: the loop, checkpoints, the run folder, flags and presets."""
