"""Image encoders with the text tower that they were trained against, if there is one, whoever's they are."""
