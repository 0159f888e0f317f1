"""The loop around the model: buffers allocated once, the k steps of a round, capture and replay, a second stream."""
