"""inturn beside the other ordered queues of PostgreSQL, with the same work: `make bench-full`."""
