"""Concepts in the tools that people draw with: stock diffusers pipelines, and files that other tools read."""
