"""The embedded dataset and the program that made it, D4RL's names, and other formats."""
