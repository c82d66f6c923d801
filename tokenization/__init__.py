"""From items to tokens: encoders, tokenizers, mem-tokens and the token artifact."""
