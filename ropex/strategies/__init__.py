"""RoPE scaling strategies, one method a file; the registry finds them by looking here."""
