"""The studio: the web page on which people draw with concepts and train them.

`job_queue`, `bases`, `history` and `trainings` are its parts and `session` puts them together; `drawing` and
`training_jobs` are what the queue runs. Only `app`, `api`, `theme` and `tabs` import Gradio: `app` calls the
functions of `tabs` in the order in which they are shown, and hands each what it needs of those before it.
"""
