"""Every causal language model that the installed transformers knows, as a tiny model."""
