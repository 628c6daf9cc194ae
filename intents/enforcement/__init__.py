"""Making intents real: flow rules over OpenFlow or ONOS, manifests over Kubernetes, and reading back what is there."""
