"""Kinds of devices the compiler builds for: one TOML per target, and its reader."""
