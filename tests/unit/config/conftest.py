"""Property tests: the same examples in every run, and no judgement by the clock (the machine is shared)."""

from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True, database=None)
settings.load_profile("steady")
