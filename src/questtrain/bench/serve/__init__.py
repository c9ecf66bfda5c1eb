"""A server under load: how many tokens a second all clients get together, and how long each waits."""
