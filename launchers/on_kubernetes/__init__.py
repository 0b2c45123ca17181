"""Jobs on Kubernetes: objects, submission, logs, state; the only place that knows the Kubernetes
client.

What runs inside a pod is in `on_ray`.
"""
