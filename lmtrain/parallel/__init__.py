"""Sharding: the mesh, partition rules, placement of batches, and the collectives of a train step."""
