"""The local API: Open Inference Protocol v2, and what people with curl need."""
