"""What ``scripts/bench serve`` starts, asks and measures; see docs/bench-serve.md."""
