"""The registry: releases and the signed metadata that devices believe, as static files.

::

    metadata/N.root.json              every version: devices walk along them
    metadata/N.targets.json           delegates: one role per model
    metadata/N.model-NAME.json        the releases of a model, signed by its team
    metadata/N.snapshot.json          which versions belong together
    metadata/timestamp.json           the newest snapshot; the only file replaced
    targets/MODEL/VERSION/SHA256.TARGET.edgeml
"""
