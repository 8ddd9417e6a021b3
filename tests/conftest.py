"""What holds for every test."""

from hypothesis import settings

# tests assert behaviour, not time: on a busy machine any example may take long
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
