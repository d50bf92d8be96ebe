"""What the tests share: throw-away servers, fresh databases, sessions that may block."""

import pytest

# What they assert is shown in full, as in a test.
pytest.register_assert_rewrite(*(f"support.{name}" for name in ("crowd", "oracle", "race", "scenes")))
