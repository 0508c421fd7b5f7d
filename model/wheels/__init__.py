"""Pretrained parts that pip wheels carry, made into folders that :mod:`model.backbones` reads."""
