"""The study of one answer: which image it depends on, by which measure, and how far that can be trusted."""
