"""Where texts come from, and what tokens they are."""
