"""Compare two ways to run one model."""
