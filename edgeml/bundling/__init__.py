"""A chosen artifact becomes a bundle; bundles are looked at and compared."""
