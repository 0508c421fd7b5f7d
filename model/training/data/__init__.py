"""Data sets as they come: readers, examples, captions, and the report on them."""
