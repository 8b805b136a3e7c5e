"""Which strategies would carry a model to a length."""
