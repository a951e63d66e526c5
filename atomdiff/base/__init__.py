"""A loaded Stable Diffusion: where it comes from, how it is loaded, and the word that a concept teaches."""
