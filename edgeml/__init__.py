"""The build host and the fleet service: from a trained model to a fleet."""

__version__ = "0.1.0"
