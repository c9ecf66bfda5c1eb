"""What lies on disk: files written atomically, checkpoints with checksums, the commit that runs."""
