"""One file, one method of a paper: its equations in order and its own short training loop."""
