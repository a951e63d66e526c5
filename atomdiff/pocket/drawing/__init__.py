"""How the pocket world is drawn: brush, characters and objects, scenery, wardrobe, styles."""
