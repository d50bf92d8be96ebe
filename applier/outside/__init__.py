"""Applying outside the database: each key by a lease, no transaction open meanwhile."""
