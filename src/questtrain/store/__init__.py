"""What lies on disk: files written atomically, checkpoints with checksums."""
