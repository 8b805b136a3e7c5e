"""Forward passes: losses and answers within the memory at hand."""
