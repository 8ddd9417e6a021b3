"""What must agree before a bundle is activated: the director's word and the registry's.

::

    client ──> store, floors, clock          in the agent: light
      └─ child process ──> judge ──> desired, registry ──> fetch      tuf, cryptography

The agent itself never loads what verifies; a short-lived process does
(:mod:`.__main__`), and gives its memory back. docs/trust.md says who signs what.
"""
