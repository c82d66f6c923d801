"""Interaction architectures (towers), the sparse side, and the ranking model that joins them."""
