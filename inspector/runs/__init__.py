"""Training jobs and their folders, and what they changed."""
