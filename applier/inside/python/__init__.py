"""What PythonTarget consists of: the turns it claims, the calls of handlers, and the verdict on a failure."""
