"""The inventory that the tables speak of."""

from intents.model.inventory import parse_inventory

ESTATE = parse_inventory("""
kind: Inventory
nodes:
  - {name: fra-1, switch: s-fra, labels: {midstream.dev/jurisdiction: DE, topology.kubernetes.io/region: eu-central-1,
     topology.kubernetes.io/zone: eu-central-1a, midstream.dev/tier: cloud, midstream.dev/trust: trusted,
     midstream.dev/provider: acme, midstream.dev/gpu: h100, disk: nvme, midstream.dev/confidential: true}}
  - {name: fra-2, switch: s-fra, labels: {midstream.dev/jurisdiction: DE, topology.kubernetes.io/region: eu-central-1,
     topology.kubernetes.io/zone: eu-central-1b, midstream.dev/tier: cloud, midstream.dev/trust: certified,
     midstream.dev/provider: own, midstream.dev/gpu: none, disk: ssd, midstream.dev/confidential: false}}
  - {name: ber-1, switch: s-fra, labels: {midstream.dev/jurisdiction: DE, topology.kubernetes.io/region: berlin,
     topology.kubernetes.io/zone: berlin-1, midstream.dev/tier: edge, midstream.dev/trust: trusted,
     midstream.dev/provider: own, rack: r7}}
  - {name: par-1, switch: s-par, labels: {midstream.dev/jurisdiction: FR, topology.kubernetes.io/region: eu-west-3,
     midstream.dev/tier: cloud, midstream.dev/trust: trusted, midstream.dev/gpu: h100, disk: nvme}}
  - {name: zrh-1, switch: s-zrh, labels: {midstream.dev/jurisdiction: CH, midstream.dev/tier: edge,
     midstream.dev/trust: certified, midstream.dev/provider: own}}
  - {name: iad-1, switch: s-iad, labels: {midstream.dev/jurisdiction: US, topology.kubernetes.io/region: us-east-1,
     midstream.dev/tier: cloud, midstream.dev/trust: untrusted, midstream.dev/provider: acme}}
  - {name: dark-1, switch: s-zrh}
workloads:
  - {name: patient-chat, node: fra-1, labels: {midstream.dev/data: health, app: llm}}
  - {name: radiology, node: fra-2, labels: {midstream.dev/data: health}}
  - {name: claims, node: par-1, labels: {midstream.dev/data: health}}
  - {name: ledger, node: fra-1, labels: {midstream.dev/data: finance, team: money}}
  - {name: card-payments, node: fra-2, labels: {midstream.dev/data: finance}}
  - {name: hr-assistant, labels: {midstream.dev/data: personal, app: llm}}
  - {name: website, node: iad-1, labels: {midstream.dev/data: public}}
  - {name: telemetry, node: iad-1}
switches:
  - {name: s-fra, labels: {midstream.dev/jurisdiction: DE, midstream.dev/trust: trusted, midstream.dev/provider: own}}
  - {name: s-par, labels: {midstream.dev/jurisdiction: FR, midstream.dev/trust: trusted, midstream.dev/provider: acme}}
  - {name: s-zrh, labels: {midstream.dev/jurisdiction: CH, midstream.dev/trust: untrusted}}
  - {name: s-iad, labels: {midstream.dev/jurisdiction: US, midstream.dev/trust: untrusted}}
links:
  - {a: s-fra, b: s-par, labels: {midstream.dev/encrypted: true}}
  - {a: s-fra, b: s-zrh, labels: {midstream.dev/encrypted: false}}
  - {a: s-zrh, b: s-par, labels: {midstream.dev/encrypted: true}}
  - {a: s-par, b: s-iad, labels: {midstream.dev/encrypted: true}}
""")
