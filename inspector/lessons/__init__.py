"""The questions of somebody who reads about a training notebook for the first time, answered on the prompt that is
shown."""
