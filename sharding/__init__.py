"""Where each row of each table lives, and whether it fits."""
