"""unet: train, score and apply segmentation networks on Gaudi, NVIDIA, Cambricon and CPUs from one command line."""

__version__ = "0.1.0"
