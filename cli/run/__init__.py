"""`inturn apply`: one process, or several under a parent."""
