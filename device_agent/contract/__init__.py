"""What the build host, the fleet and the device agree on.

Standard library, numpy and pydantic only (decoding an image asks for Pillow).
"""
