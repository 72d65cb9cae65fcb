"""Parts of networks that several methods share, and where to find what the papers name.

  ResNet, with modality-specific stages and branches      resnet
  batch normalization as PyTorch's; bn_groups             norm
  GAP, GeM                                                pooling
  non-local blocks; DEEN's MFA (CNL, PNL)                 attention
  DEEN's and PDM's network; DEE, MFGM, PLM, SimAM         multifeature
  auxiliary modalities as images: SMGM, X, gray, mixed    auxiliary
  starts of parameters                                    init
  memory: devices.accumulate; devices.remat               chunks; remat

What one method alone has is in its folder, methods/NAME/net.py.
"""
