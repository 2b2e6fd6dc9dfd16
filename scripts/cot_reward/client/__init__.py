"""Bounded asynchronous requests to an OpenAI-compatible server; nothing of files, flags, judging.

wire: what is asked and what came, as bytes. server: one attempt. outage: pause and probe.
capacity: how many requests are in flight. flow: media, retries, outcomes as they come.
"""
