"""Bulk jobs: embed millions of images into a folder of vectors, and search it.

The format of the folder is described in ``docs/bulk.md``; only this package writes it. In the order of the data:
``listing`` finds the inputs, ``plan`` assigns them to shards, ``shard`` embeds and commits one shard, ``worker_pool``
runs shards in processes that may crash, ``run`` runs a whole job, ``search`` reads its folder.
"""
