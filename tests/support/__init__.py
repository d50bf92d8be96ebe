"""What the tests share: throw-away servers, fresh databases, sessions that may block."""
