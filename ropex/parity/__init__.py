"""Two ways to one model, compared."""
