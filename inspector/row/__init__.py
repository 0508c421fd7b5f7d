"""The prompt and the row of tokens that it becomes: asked, laid out, tabulated, its attention read."""
