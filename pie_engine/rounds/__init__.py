"""From a prepared batch to frames: schedule, plan, buffers, equations, loop. It alone touches plan and buffers."""
