"""One module a revision; beside it the SQL that it froze."""
