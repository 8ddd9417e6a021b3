"""Training on the build host: one small torch loop that every pass shares."""
