"""The mesh: partition rules, placement, and the collectives of a train step."""
