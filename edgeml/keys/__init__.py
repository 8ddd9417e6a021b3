"""Keys: who signs what a device believes.

Nothing in here loads a compiler, so a fleet service signs with it (:mod:`.director`).
"""
