"""Paper blocks: one per file, single-process maths on any device."""
