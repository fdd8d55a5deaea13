"""What a step is trained for."""
