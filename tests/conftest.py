"""Shared by all tests: property tests may take their time on a busy machine."""

from hypothesis import settings

settings.register_profile("default", deadline=None)
settings.load_profile("default")
