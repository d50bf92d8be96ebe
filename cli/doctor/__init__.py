"""`inturn doctor`: one table of checks; a new check is a function and a line in it."""
