"""The migrations: frozen once released, never edited."""
