"""Getting a bundle over HTTP: resumed wherever it was cut off, believed by its digest.

The rules it keeps:

1. What arrives goes to ``<digest>.part``, which survives restarts and is never the name
   of anything whole. What lies there already is hashed again and gone on from (Range);
   a server without ranges sends it again, and it is skipped, not thrown away.
2. Nothing is taken on the server's word: not more bytes than the registry's metadata
   says, not another range than was asked for, and in the end the digest.
3. There is room for all of it before the first byte is asked for.
4. 4xx ends it at this mirror, but for those that mean "later" (408, 425, 429) and for
   416, which is asked again without a range. 5xx and the network's errors are tried
   again at the next mirror after a pause with full jitter, capped; progress starts the
   pauses anew.
5. Who sends too slowly is left. The pace that we keep ourselves is no slowness.
"""
