"""The streaming client and the runner: sends a plan's requests when they are due and keeps when each token arrived."""
