"""What every recipe shares: the loop, checkpoints, the run folder, callbacks, TensorBoard."""
