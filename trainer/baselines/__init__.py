"""What a user would try first: models without embeddings, fitted on the same causal features."""
