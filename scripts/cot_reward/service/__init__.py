"""The reward over HTTP: a bounded service over a running server, by the room `reward`.

settings: what the service can be told. app: its pages. handling: one request from its first byte
to its answer. limits: places, bytes and time of requests. bodies: a request's JSON. pictures: the
pictures in it. answers: from a finding to a status. readiness: does the server behind answer?
metrics: what is counted. run: start and end.
"""
