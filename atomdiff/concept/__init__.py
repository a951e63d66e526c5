"""What a training leaves: concepts, their algebra, their timelines, and the passport of the base they fit."""
