"""What is computed from losses: definitions, statistics, verdicts, results."""
