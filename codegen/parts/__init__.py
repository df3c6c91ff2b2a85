"""What a query or a key goes through, part by part, as tile programs: forward, and back to all it reads."""
