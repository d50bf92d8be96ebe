"""What comes before the first command: the schema, topics, the embedded server, completion."""
