"""Images and texts in one space: what a contrastively trained encoder makes of the images of a prompt."""
