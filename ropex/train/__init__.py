"""Fine-tune patched models with any trainer."""
