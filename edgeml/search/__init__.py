"""Looks for the variation of a recipe that is best under its budget."""
