"""Data that are drawn: scenes, easy-VQA, words to teach, the example prompts."""
