"""Property tests here take as long as they take: the machine may be busy."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("qatc-frontends", deadline=None, print_blob=True)
settings.load_profile("qatc-frontends")
