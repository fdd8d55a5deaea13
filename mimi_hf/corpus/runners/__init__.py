"""Who does which shard: the processes of this machine, the ranks of a cluster, or the actors of Ray.

All of them call `job.run(model, index)`, and none keeps books: a shard is done when its report is there.
"""
