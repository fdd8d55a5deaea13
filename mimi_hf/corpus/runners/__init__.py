"""Who does which shard: processes, ranks, Ray."""
