"""What the workers of one process have in common."""
