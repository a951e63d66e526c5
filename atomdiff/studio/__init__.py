"""The studio: the web page on which people draw with concepts.

Three layers, each knowing only those before it: `desk` and `history` (one queue on the device; what was
drawn), `drawing` and `house` (what a drawing is; everything the page talks to), then `page` and `tabs`
(Gradio, no logic). Nothing but `page`, `tabs` and `endpoints` imports Gradio.
"""
