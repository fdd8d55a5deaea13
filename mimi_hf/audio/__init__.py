"""Audio in and out: numpy alone."""
