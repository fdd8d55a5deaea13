"""What computes: layers, tiles and streams; torch alone."""
