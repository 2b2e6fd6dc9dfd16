"""The reward in use: a served model asked about a caller's own candidates, from Python.

model: RewardModel, the door. settings: what it can be told. results: what it answers. pictures:
paths, bytes and pictures in memory as a request holds them. question: a comparison of these.
asking: the one place that knows the client. votes: from texts to a judgement. ranking: candidates
by many judgements, with schedule (which pairs) and bradley_terry (strengths). gate, loop: how many
comparisons are prepared, and where they run. score: best of N from files, with score_rows (what is
ranked) and score_folder (its journal).
"""
