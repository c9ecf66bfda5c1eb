"""A server under load: the tokens a second of all clients together, and how long each waits."""
