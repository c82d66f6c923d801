"""Contract folders of interaction logs, and the reader that turns them into batches."""
