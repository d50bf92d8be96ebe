"""What the tests share: throw-away servers, fresh databases, sessions that may block."""

import sys

# What they assert is shown in full, as in a test.
_ASSERTING = ("crowd", "gap_scenes", "lease_scenes", "operator_scenes", "oracle", "race", "scenes", "year")
if "pytest" in sys.modules:  # an applier's process has none, and starts in half the time
    import pytest

    pytest.register_assert_rewrite(*(f"support.{name}" for name in _ASSERTING))
