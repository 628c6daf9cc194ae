"""The head as KServe speaks to it: `kserve.ModelServer` in front of a Midstream head.

Problem: KServe's clients, probes and graphs speak its V1 and V2 protocols, and vLLM's server does not. KServe's own way
to serve a language model takes over the engine and wants a vLLM version of its own, and kserve and func-python need
different versions of cloudevents.

Protocol: a process of its own beside the head, in an environment of its own with kserve and without an engine, so that
the head keeps vLLM's server with all that it can and the image in front stays small::

    KServe client --V2 infer, V1 predict, CloudEvent--> [ModelServer] --/v1/completions--+
    OpenAI client --/openai/v1/..., /v1/...-----------> [passthrough] --the same bytes---+--> head on loopback
    Prometheus    --/metrics--------------------------> [passthrough] --------------------+

It is ready while the head's ``/health`` says so. In a pod the head is the container ``kserve-container``, which gets
KServe's model files and resources, and this is ``transformer-container``, which has the port.

Caveats: ``/v1/models`` is a path of both OpenAI's API and KServe's V1, and one answer serves both; ``/v1/models/NAME``
is KServe's, ``/openai/v1/models`` is the head's alone. ``/metrics`` are the head's: KServe's own would count the same
requests again. The head's control API (``/midstream/v1``) cannot be reached through here. There is no gRPC: KServe
would open it on all interfaces.
"""
