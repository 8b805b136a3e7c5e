"""Run recipes: fine-tuning, stage by stage."""
