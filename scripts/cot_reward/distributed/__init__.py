"""Inference on the machines of a Ray cluster: many plain runs of the client, each about a share.

Only `pool` and `run` know Ray. `plan` is about the folders of the shares, `queue` about who asks
which share, and `worker` about what happens on a machine.
"""
