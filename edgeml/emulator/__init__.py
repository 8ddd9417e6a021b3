"""Runs the device's own program on its target's architecture, on this host.

The rules it keeps:

1. What runs is pinned by ``lock.toml``, each piece with its SHA-256: a static QEMU, the
   guest's Python and libraries from Debian, the device's wheels. No root, no container,
   no binfmt_misc.
2. It lies in the user's cache, whole or not at all: after the first time no network is
   needed. The guest's Python adds its bytecode, nothing else changes.
3. The guest runs ``python -m device_agent`` of this very checkout; what comes out is
   judged by the device's own rules, the host only adds what the guest cannot know.
"""
