"""Commands posted to a service over HTTP."""
