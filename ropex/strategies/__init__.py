"""RoPE scaling strategies, one method a file."""
