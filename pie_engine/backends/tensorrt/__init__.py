"""TensorRT and TensorRT-RTX: plans are built in a process of their own, and run on the loop's buffers."""
