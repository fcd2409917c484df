"""The commands: train, doctor and report; each is thin and reads from top to bottom."""
