"""Losses that several methods share: pure functions of features [B, M, D] and labels [B].

  cross-entropy with CEHL's margin; accuracy      identity
  batch-hard triplet                              triplet
  CPM and ORT of DEEN and PDM                     pairmining
  centers of identities                           center
  pairs, hard triplets and means over them        mining
  distances with finite gradients                 distance

What one method alone has is in its folder, methods/NAME/losses.py.
"""
