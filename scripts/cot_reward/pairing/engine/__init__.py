"""What lets a merge be larger than memory: a database, shards, batches and worker processes."""
