"""Models in memory: loaded from bundles, asked in order, swapped without a gap."""
