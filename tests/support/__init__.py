"""What the tests share: throw-away servers, fresh databases, sessions that may block."""

import pytest

# What they assert is shown in full, as in a test.
_ASSERTING = ("crowd", "gap_scenes", "lease_scenes", "operator_scenes", "oracle", "race", "scenes", "year")
pytest.register_assert_rewrite(*(f"support.{name}" for name in _ASSERTING))
