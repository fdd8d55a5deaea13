"""Audio for training."""
