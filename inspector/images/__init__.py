"""Images opened from their files when they are needed, decoded in a process of their own."""
