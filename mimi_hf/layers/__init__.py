"""The layers of Mimi. Each is `y, state = layer(x, state)` on channels-last tensors; `state=None` is silence before."""
