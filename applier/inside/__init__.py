"""Applying in the database: handlers and SQL targets in the transaction that records the progress."""
