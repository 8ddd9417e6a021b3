"""Data sets that edgeml describes; the functions beside them read the odd ones."""
