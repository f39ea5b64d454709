"""What a run would need and cost, here or on machines that are not present."""
