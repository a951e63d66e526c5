"""Concepts on their way to others: cards, QR codes, the library of concepts, the hub."""
