"""A busy machine may make any one example slow: hypothesis' own deadline is off."""

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
