"""What every room may use: files, processes, places."""
