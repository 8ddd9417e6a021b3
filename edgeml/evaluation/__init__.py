"""Figures of an artifact: metrics, slices, flips, latency, memory."""
