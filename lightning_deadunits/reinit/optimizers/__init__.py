"""What optimizers remember of weights, and how they forget some of them."""
