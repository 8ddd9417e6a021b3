"""Questions about ONNX graphs, and their preparation for the tools."""
