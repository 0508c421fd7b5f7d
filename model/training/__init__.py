"""How the embedded model is made: drawn scenes, easy-VQA, a tokenizer, and the training run."""
