"""A CloudEvents broker for one machine, with the semantics of Knative's Broker and Trigger."""
