"""An experiment's file, to be changed by tests."""

DEMO = """\
apiVersion: midstream.dev/v1alpha1
kind: Experiment
metadata: {name: demo}
repeats: 2
target: {kind: mock, layers: "15,15"}
workload: {kind: closed, users: 2, duration_s: 2, input_tokens: 16, output_tokens: 32}
arms:
- name: static
- name: dynamic
  actions: [{kind: reconfigure, layers: "8,12,10", at_s: 1}]
"""
