"""Training: steps, losses, optimizer, checkpoints and logs."""
