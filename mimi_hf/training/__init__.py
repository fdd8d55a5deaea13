"""Training Mimi: losses, discriminator, data and the trainer."""
