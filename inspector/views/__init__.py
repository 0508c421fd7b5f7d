"""One file per part of the page: builders that return components, and their event handlers."""
