"""Getting a new model, safely: what should run, and how far this device is with it."""
