"""Everything that waits for a GPU, in one script."""
