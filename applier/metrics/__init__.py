"""Metrics: what a process counts, what the database says, and how both are served to a scrape."""
