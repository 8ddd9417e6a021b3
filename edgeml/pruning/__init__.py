"""Pruning: which channels and heads go, and a module that is smaller afterwards."""
