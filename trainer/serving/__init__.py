"""Trained models outside training: exported once, then loaded to score."""
