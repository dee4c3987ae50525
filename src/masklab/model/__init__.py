"""The network, on tensors: backbone, proposals, box head, mask heads, refinement."""
