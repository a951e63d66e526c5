"""Drawing: where and when concepts act, previews, pictures kept with their settings, grids and sheets."""
