"""What a job is on any cluster: request, state, verdict, environment.

Nothing here knows Kubernetes or Ray.
"""
