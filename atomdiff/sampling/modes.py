"""How concepts act while a picture is drawn, by name; `gating` has what each does, and torch."""

ACTING = ("plain", "gated")
USUAL = "plain"
