"""The app around the model: analyses, figures, widgets and the page."""
