"""Properties of extraction and of the rules, for texts and numbers of all kinds. No process starts."""

import hypothesis

# The same examples in every run, and no limit on time, which a busy machine would exceed.
hypothesis.settings.register_profile(
  "answers", max_examples=200, deadline=None, derandomize=True, database=None
)
given = lambda **kinds: (
  lambda test: hypothesis.settings.get_profile("answers")(hypothesis.given(**kinds)(test))
)
