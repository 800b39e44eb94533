"""What the training stages share: the trainer, the losses, checkpoints, progress."""
