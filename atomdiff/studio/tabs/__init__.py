"""The tabs: a function each, which lays it out, connects it, and gives what later tabs need of it."""
