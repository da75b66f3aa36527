"""Training a GPT: settings, the loop, what it reports, and checkpoints that a run goes on from."""
