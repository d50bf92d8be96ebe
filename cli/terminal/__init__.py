"""What people type and read: keys, spans of time, payloads, tables."""
