"""Which samples, and how they are drawn."""
