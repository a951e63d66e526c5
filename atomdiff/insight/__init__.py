"""Looking at concepts: what is in a file, how far each layer moves, what was learned."""
