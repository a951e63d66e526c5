"""Pictures: read with care, drawn by a base with concepts, seen while they come, kept with their settings."""
