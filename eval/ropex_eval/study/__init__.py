"""What is measured: texts, protocol, passes and the stored table."""
