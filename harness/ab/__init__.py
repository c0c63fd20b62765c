"""Two revisions of a project, or two sets of libraries, compared in one job: trainings in live processes take turns."""
