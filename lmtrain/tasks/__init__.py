"""What a model is trained to do: one file per task, with its columns, loss, predictions and score."""
