"""Bulk jobs: pictures by the million into a folder of vectors, and search in it.

The job's folder is described in ``docs/bulk.md`` and written only here. In the order of the data: ``listing`` finds the
inputs, ``plan`` deals them out to shards, ``shard`` embeds one shard and commits it, ``crew`` runs shards in processes
that may die, ``run`` does a whole job, ``search`` reads it.
"""
