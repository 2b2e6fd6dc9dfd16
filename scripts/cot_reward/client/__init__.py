"""Bounded asynchronous requests to an OpenAI-compatible server; nothing of files, flags, judging.

wire: requests and answers as records and as bytes. server: one attempt. outage: pause and probe
while the server is out. capacity: how many requests are in flight. flow: media, retries, outcomes.
"""
