"""How the pocket model is made: one module a stage, and the resumable loop and optimiser they share."""
