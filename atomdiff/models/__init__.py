"""The base model: where it comes from, how it is loaded, and the word that a concept teaches it."""
