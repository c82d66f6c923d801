"""Generative retrieval: a next-token transformer over tokens of users' items, and beam search."""
