"""Training and drawing at the real size of Stable Diffusion, on random weights."""
