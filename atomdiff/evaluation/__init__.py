"""What a concept learned, in numbers and pictures: what is in a file, how far each layer moves, its maps."""
