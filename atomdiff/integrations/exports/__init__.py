"""Concepts as files of the kinds that other tools have long read. None is as small as the concept: ΔW = W M
means what it does on the base's weights alone, and these formats carry no map."""
