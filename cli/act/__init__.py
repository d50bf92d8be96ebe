"""Commands by which operators put keys right."""
