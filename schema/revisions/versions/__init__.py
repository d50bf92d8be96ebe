"""One module a revision, each with the SQL that it froze."""
